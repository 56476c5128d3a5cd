package podview

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes/scheme"
	restwatch "k8s.io/client-go/rest/watch"
)

// keptAnnotations are the annotations that stay: the first marks a static Pod, the second ends the initial list of a
// watch.
var keptAnnotations = []string{"kubernetes.io/config.hash", metav1.InitialEventsAnnotationKey}

// For returns a handler that narrows Pods for members of a group, and passes all other requests to next. It must come
// after authentication and authorization.
func For(group string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, hasUser := request.UserFrom(r.Context())
		info, hasInfo := request.RequestInfoFrom(r.Context())
		if !hasUser || !slices.Contains(u.GetGroups(), group) {
			next.ServeHTTP(w, r)
			return
		}
		// Narrow everything that is not known to be another resource.
		if hasInfo && (!info.IsResourceRequest || info.APIGroup != "" || info.Resource != "pods") {
			next.ServeHTTP(w, r)
			return
		}
		n := &narrowed{to: w}
		next.ServeHTTP(n, plain(r))
		n.end()
	})
}

// plain returns the request as one for whole objects, uncompressed and without a protocol upgrade.
func plain(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	accept := runtime.ContentTypeJSON
	if strings.Contains(r.Header.Get("Accept"), runtime.ContentTypeProtobuf) {
		accept = runtime.ContentTypeProtobuf
	}
	r.Header.Set("Accept", accept)
	for _, h := range []string{"Accept-Encoding", "Connection", "Upgrade"} {
		r.Header.Del(h)
	}
	return r
}

// narrowed is a response writer that narrows each Pod before it reaches the client.
type narrowed struct {
	to     http.ResponseWriter
	code   int
	info   runtime.SerializerInfo
	stream bool
	raw    bytes.Buffer // written by the handler and not yet sent
	failed error
}

var _ interface {
	http.Flusher
	http.CloseNotifier //nolint:staticcheck // upstream's handlers require it for flushing
} = (*narrowed)(nil)

// CloseNotify implements http.CloseNotifier.
func (n *narrowed) CloseNotify() <-chan bool {
	if c, ok := n.to.(http.CloseNotifier); ok { //nolint:staticcheck // see above
		return c.CloseNotify()
	}
	return nil
}

// Header implements http.ResponseWriter.
func (n *narrowed) Header() http.Header { return n.to.Header() }

// WriteHeader implements http.ResponseWriter.
func (n *narrowed) WriteHeader(code int) {
	if n.code != 0 {
		return
	}
	n.code = code
	media, params, err := mime.ParseMediaType(n.Header().Get("Content-Type"))
	if err == nil {
		var ok bool
		if n.info, ok = runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), media); !ok ||
			n.Header().Get("Content-Encoding") != "" {
			err = fmt.Errorf("unexpected encoding %q %q", media, n.Header().Get("Content-Encoding"))
		}
	}
	n.failed = err
	// A watch: protobuf marks it in the content type, JSON is chunked.
	n.stream = params["stream"] == "watch" || n.Header().Get("Transfer-Encoding") == "chunked"
	if n.stream && n.failed == nil {
		n.to.WriteHeader(code)
	}
}

// Write implements http.ResponseWriter.
func (n *narrowed) Write(p []byte) (int, error) {
	if n.code == 0 {
		n.WriteHeader(http.StatusOK)
	}
	if n.failed != nil {
		return 0, n.failed
	}
	return n.raw.Write(p)
}

// Flush implements http.Flusher. A watch is flushed between events.
func (n *narrowed) Flush() {
	if !n.stream || n.failed != nil {
		return
	}
	if n.failed = n.events(); n.failed == nil {
		http.NewResponseController(n.to).Flush() //nolint:errcheck // the client may have disconnected
	}
}

// end sends the rest of the response once the handler has returned.
func (n *narrowed) end() {
	if n.stream {
		n.Flush()
		return
	}
	out := new(bytes.Buffer)
	if n.failed == nil && n.raw.Len() > 0 {
		n.failed = n.object(out)
	}
	n.Header().Del("Content-Length")
	if n.failed != nil {
		http.Error(n.to, "cannot narrow the response for an agent: "+n.failed.Error(), http.StatusInternalServerError)
		return
	}
	if n.code != 0 {
		n.to.WriteHeader(n.code)
	}
	_, _ = n.to.Write(out.Bytes()) // the client may have disconnected
}

// object narrows the response's single object.
func (n *narrowed) object(to io.Writer) error {
	obj, _, err := n.info.Serializer.Decode(n.raw.Bytes(), nil, nil)
	if err != nil {
		return err
	}
	if err := narrow(obj); err != nil {
		return err
	}
	return encoder(n.info).Encode(obj, to)
}

// events narrows the buffered events of a watch.
func (n *narrowed) events() error {
	if n.raw.Len() == 0 {
		return nil
	}
	s := n.info.StreamSerializer
	if s == nil {
		return errors.New("this encoding does not support watches")
	}
	in := restwatch.NewDecoder(streaming.NewDecoder(s.Framer.NewFrameReader(io.NopCloser(&n.raw)), s.Serializer),
		n.info.Serializer)
	out := restwatch.NewEncoder(streaming.NewEncoder(s.Framer.NewFrameWriter(n.to), s.Serializer), encoder(n.info))
	for {
		kind, obj, err := in.Decode()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := narrow(obj); err != nil {
			return err
		}
		if err := out.Encode(&watch.Event{Type: kind, Object: obj}); err != nil {
			return err
		}
	}
}

func encoder(info runtime.SerializerInfo) runtime.Encoder {
	return scheme.Codecs.EncoderForVersion(info.Serializer, v1.SchemeGroupVersion)
}

// narrow reduces an object to what agents may see.
func narrow(obj runtime.Object) error {
	switch o := obj.(type) {
	case *v1.Pod:
		*o = pod(o)
	case *v1.PodList:
		for i := range o.Items {
			o.Items[i] = pod(&o.Items[i])
		}
	case *metav1.Status:
	default:
		return fmt.Errorf("unexpected type %T", obj)
	}
	return nil
}

// pod returns the parts of a Pod that agents may see.
func pod(p *v1.Pod) v1.Pod {
	out := v1.Pod{TypeMeta: p.TypeMeta, ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, Labels: p.Labels,
		CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp,
	}}
	for _, key := range keptAnnotations {
		if value, ok := p.Annotations[key]; ok {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[key] = value
		}
	}
	out.Spec.NodeName, out.Spec.HostNetwork = p.Spec.NodeName, p.Spec.HostNetwork
	out.Spec.Containers, out.Spec.InitContainers = ports(p.Spec.Containers), ports(p.Spec.InitContainers)
	out.Status.Phase, out.Status.PodIP, out.Status.PodIPs, out.Status.HostIP, out.Status.HostIPs = p.Status.Phase,
		p.Status.PodIP, p.Status.PodIPs, p.Status.HostIP, p.Status.HostIPs
	return out
}

// ports returns containers reduced to names and ports.
func ports(in []v1.Container) (out []v1.Container) {
	for _, c := range in {
		out = append(out, v1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
	}
	return out
}
