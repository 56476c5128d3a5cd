package controlplane

import (
	"fmt"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/union"
	genericapiserver "k8s.io/apiserver/pkg/server"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
)

// healthPaths are the only paths that are open to anonymous requests.
var healthPaths = []apiserver.AnonymousAuthCondition{{Path: "/livez"}, {Path: "/readyz"}, {Path: "/healthz"}}

// decideAnonymous checks the user's settings of authentication, and limits anonymous requests to healthPaths unless the
// user has set the flag anonymous-auth or the part `anonymous` of an authentication-config.
//
// Upstream has no setting for this: its flag opens all paths or none, and its file cannot be combined with the flags
// oidc-* or with a file of the user.
func (a *APIServer) decideAnonymous() error {
	auth := a.opts.Authentication
	parts := kubeoptions.BuiltInAuthenticationOptions{AuthenticationConfigFile: auth.AuthenticationConfigFile,
		OIDC: auth.OIDC, Anonymous: auth.Anonymous}
	conf, err := parts.ToAuthenticationConfig()
	if err != nil {
		return fmt.Errorf("kube-apiserver-arg: %w", err)
	}
	switch {
	case !given(a.settings.APIServerArgs, "anonymous-auth") && conf.AuthenticationConfig.Anonymous == nil:
		auth.Anonymous.Allow, a.healthOnly = false, true
	case conf.Anonymous.Enabled && len(conf.Anonymous.Conditions) == 0:
		a.anonymous = "kube-apiserver-arg lets strangers ask for every path; they get what system:unauthenticated may, /version among it"
	default:
		a.anonymous = "kube-apiserver-arg decides what strangers may ask for; without it they may ask for health and nothing else"
	}
	return nil
}

// openHealth lets requests without credentials ask for health.
func openHealth(c *genericapiserver.Config) {
	c.Authentication.Authenticator = union.NewFailOnError(c.Authentication.Authenticator,
		anonymous.NewAuthenticator(healthPaths))
}
