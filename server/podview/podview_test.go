package podview

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	restwatch "k8s.io/client-go/rest/watch"
)

const secret = "tenant-secret"

func fullPod() *v1.Pod {
	always := v1.ContainerRestartPolicyAlways
	container := func(name string, port int32) v1.Container {
		return v1.Container{Name: name, Image: secret, Args: []string{secret}, Command: []string{secret},
			Env:   []v1.EnvVar{{Name: secret, Value: secret}},
			Ports: []v1.ContainerPort{{Name: "web", ContainerPort: port}}}
	}
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", ResourceVersion: "7",
			Labels: map[string]string{"app": "a"},
			Annotations: map[string]string{secret: secret, "kubernetes.io/config.hash": "h",
				metav1.InitialEventsAnnotationKey: "true"},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: secret}},
			OwnerReferences: []metav1.OwnerReference{{Name: secret}}},
		Spec: v1.PodSpec{NodeName: "n2", Containers: []v1.Container{container("c", 80)},
			InitContainers: []v1.Container{container("i", 81)},
			Volumes:        []v1.Volume{{Name: secret}}, ServiceAccountName: secret},
		Status: v1.PodStatus{Phase: v1.PodRunning, Message: secret, PodIPs: []v1.PodIP{{IP: "10.42.1.2"}},
			ContainerStatuses: []v1.ContainerStatus{{Image: secret}}},
	}
	p.Spec.InitContainers[0].RestartPolicy = &always
	return p
}

// upstream answers as the API server does: whole Pods, in the form that is asked for.
func upstream(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" || r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("asked with %v", r.Header)
		}
		media := r.Header.Get("Accept")
		info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), media)
		if !ok {
			t.Errorf("asked for %q", media)
			return
		}
		to := scheme.Codecs.EncoderForVersion(info.Serializer, v1.SchemeGroupVersion)
		send := func(code int, o runtime.Object) {
			w.Header().Set("Content-Type", media)
			w.WriteHeader(code)
			if err := to.Encode(o, w); err != nil {
				t.Error(err)
			}
		}
		i, _ := request.RequestInfoFrom(r.Context())
		switch i.Verb {
		case "list":
			send(http.StatusOK, &v1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "9"},
				Items: []v1.Pod{*fullPod(), *fullPod()}})
		case "watch":
			if strings.Contains(media, "protobuf") {
				media += ";stream=watch"
			}
			w.Header().Set("Content-Type", media)
			w.Header().Set("Transfer-Encoding", "chunked")
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			s := info.StreamSerializer
			enc := restwatch.NewEncoder(streaming.NewEncoder(s.Framer.NewFrameWriter(w), s.Serializer), to)
			status := metav1.Status{Status: "Failure", Reason: metav1.StatusReasonExpired, Code: 410}
			for n, e := range []watch.Event{{Type: watch.Added, Object: fullPod()},
				{Type: watch.Modified, Object: fullPod()}, {Type: watch.Bookmark, Object: fullPod()},
				{Type: watch.Deleted, Object: fullPod()}, {Type: watch.Error, Object: &status}} {
				if err := enc.Encode(&e); err != nil {
					t.Error(err)
				}
				if n > 0 { // the first two come together
					w.(http.Flusher).Flush()
				}
			}
		default:
			if i.Name == "absent" {
				send(http.StatusNotFound, &metav1.Status{Status: "Failure",
					Reason: metav1.StatusReasonNotFound, Code: 404})
				return
			}
			send(http.StatusOK, fullPod())
		}
	})
}

// serve returns clients of the API as a member of a group, by the form in which they ask.
func serve(t *testing.T, group string) map[string]*kubernetes.Clientset {
	t.Helper()
	resolver := &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"),
		GrouplessAPIPrefixes: sets.NewString("api")}
	view := For("agents", upstream(t))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := resolver.NewRequestInfo(r)
		if err != nil {
			t.Error(err)
		}
		ctx := request.WithUser(request.WithRequestInfo(r.Context(), info),
			&user.DefaultInfo{Name: "x", Groups: []string{group}})
		r = r.WithContext(ctx)
		if group != "agents" {
			r.Header.Del("Accept-Encoding")
			r.Header.Set("Accept", strings.Split(r.Header.Get("Accept"), ",")[0])
		}
		view.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	out := map[string]*kubernetes.Clientset{}
	for _, media := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		c, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL,
			ContentConfig: rest.ContentConfig{ContentType: media, AcceptContentTypes: media + ",application/json"}})
		if err != nil {
			t.Fatal(err)
		}
		out[media] = c
	}
	return out
}

// check says what is wrong with what an agent has got.
func check(t *testing.T, obj runtime.Object) {
	t.Helper()
	raw, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), secret) {
		t.Errorf("an agent sees %s", raw)
	}
	p, ok := obj.(*v1.Pod)
	if !ok {
		return
	}
	if p.Name != "p" || p.Namespace != "ns" || p.UID != "u" || p.ResourceVersion != "7" || p.Labels["app"] != "a" ||
		len(p.Annotations) != 2 || p.Spec.NodeName != "n2" ||
		p.Status.Phase != v1.PodRunning || p.Status.PodIPs[0].IP != "10.42.1.2" ||
		p.Spec.Containers[0].Ports[0].ContainerPort != 80 ||
		p.Spec.InitContainers[0].Ports[0].ContainerPort != 81 || p.Spec.InitContainers[0].RestartPolicy == nil {
		t.Errorf("an agent lacks something: %s", raw)
	}
}

// TestAgentsSeeLittleOfPods: get, list and watch, in both forms that a client can ask for.
func TestAgentsSeeLittleOfPods(t *testing.T) {
	for media, c := range serve(t, "agents") {
		t.Run(media, func(t *testing.T) {
			pods := c.CoreV1().Pods("ns")
			one, err := pods.Get(t.Context(), "p", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			check(t, one)
			if _, err := pods.Get(t.Context(), "absent", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("absent: %v", err)
			}
			list, err := pods.List(t.Context(), metav1.ListOptions{})
			if err != nil || len(list.Items) != 2 || list.ResourceVersion != "9" {
				t.Fatalf("%v, %v", list, err)
			}
			check(t, list)
			for i := range list.Items {
				check(t, &list.Items[i])
			}
			w, err := pods.Watch(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var kinds []watch.EventType
			for e := range w.ResultChan() {
				kinds = append(kinds, e.Type)
				check(t, e.Object)
			}
			if want := []watch.EventType{watch.Added, watch.Modified, watch.Bookmark, watch.Deleted,
				watch.Error}; !slices.Equal(kinds, want) {
				t.Errorf("events %v, want %v", kinds, want)
			}
		})
	}
}

// TestTables: who asks for a table or for metadata gets narrowed objects, and nobody talks a watch into another
// protocol.
func TestTables(t *testing.T) {
	for accept, want := range map[string]string{
		"application/json;as=Table;v=v1;g=meta.k8s.io,application/json":                                              runtime.ContentTypeJSON,
		"application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;q=0.9": runtime.ContentTypeProtobuf,
		"application/cbor": runtime.ContentTypeJSON, "application/yaml": runtime.ContentTypeJSON,
		"": runtime.ContentTypeJSON,
	} {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil)
		r.Header.Set("Accept", accept)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "websocket")
		got := plain(r)
		if got.Header.Get("Accept") != want || got.Header.Get("Upgrade")+got.Header.Get("Connection") != "" {
			t.Errorf("%q becomes %v", accept, got.Header)
		}
		if r.Header.Get("Upgrade") == "" {
			t.Error("the request of others has changed")
		}
	}
}

// TestOthersSeeAll: the filter is the agents'.
func TestOthersSeeAll(t *testing.T) {
	for _, c := range serve(t, "admins") {
		p, err := c.CoreV1().Pods("ns").Get(t.Context(), "p", metav1.GetOptions{})
		if err != nil || p.Spec.Containers[0].Env[0].Value != secret {
			t.Errorf("%v, %v", p, err)
		}
	}
}

// TestWhatCannotBeNarrowedIsNotSent: nothing passes that is not understood.
func TestWhatCannotBeNarrowedIsNotSent(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"no object": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(secret)) },
		"another form": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte(secret))
		},
		"compressed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte(secret))
		},
		"another kind": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"kind":"Secret","apiVersion":"v1","metadata":{"name":"` + secret + `"}}`))
		},
		"half an event": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Transfer-Encoding", "chunked")
			_, _ = w.Write([]byte(`{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"` + secret))
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte(secret))
		},
	} {
		w := httptest.NewRecorder()
		ctx := request.WithUser(t.Context(), &user.DefaultInfo{Name: "x", Groups: []string{"agents"}})
		For("agents", answer).ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/pods", nil))
		if strings.Contains(w.Body.String(), secret) {
			t.Errorf("%s: %s", name, w.Body)
		}
	}
}
