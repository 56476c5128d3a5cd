package proxy

import (
	"context"
	"fmt"
	"strings"

	authn "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// ParseName reads a Service's name as [NAMESPACE/]NAME.
func ParseName(text string) types.NamespacedName {
	if ns, name, both := strings.Cut(text, "/"); both {
		return types.NamespacedName{Namespace: ns, Name: name}
	}
	return types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: text}
}

// ExplainHere is Explain for the node whose credentials client has, with the guard that the running proxy has written
// to a file.
func ExplainHere(ctx context.Context, client kubernetes.Interface, service types.NamespacedName,
	guardFile string) (*Explanation, error) {
	me, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authn.SelfSubjectReview{},
		metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask the API server who this node is: %w", err)
	}
	user := me.Status.UserInfo.Username // umiak:agent:NAME
	return Explain(ctx, client, user[strings.LastIndexByte(user, ':')+1:], service, ReadGuard(guardFile))
}
