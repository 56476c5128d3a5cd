package controlplane

import "maps"

// What to do instead of setting a flag that other parts of umiak rely on.
const (
	renewed   = "umiak issues and renews the certificates; your own authorities come by `umiak certificate rotate-ca --from FOLDER`"
	datastore = "set datastore-endpoint and its files"
	elected   = "umiak decides which server runs it"
	connected = "umiak connects it to its own API server"
)

// ownedByAPIServer are kube-apiserver's flags that the user cannot change.
var ownedByAPIServer = map[string]string{
	"bind-address":                     "set bind-address",
	"secure-port":                      "set https-listen-port",
	"advertise-address":                "set advertise-address",
	"service-cluster-ip-range":         "set service-cidr",
	"service-node-port-range":          "set service-node-port-range",
	"tls-cert-file":                    renewed,
	"tls-private-key-file":             renewed,
	"client-ca-file":                   renewed,
	"kubelet-certificate-authority":    renewed,
	"kubelet-client-certificate":       renewed,
	"kubelet-client-key":               renewed,
	"requestheader-client-ca-file":     renewed,
	"requestheader-allowed-names":      renewed,
	"proxy-client-cert-file":           renewed,
	"proxy-client-key-file":            renewed,
	"service-account-signing-key-file": renewed,
	"service-account-key-file":         renewed,
	"service-account-signing-endpoint": "umiak signs the tokens of ServiceAccounts with a key of its own, which `umiak certificate rotate-ca service-account` replaces",
	"etcd-servers":                     datastore,
	"etcd-servers-overrides":           datastore,
	"etcd-cafile":                      datastore,
	"etcd-certfile":                    datastore,
	"etcd-keyfile":                     datastore,
	"etcd-prefix":                      "snapshots and the change of datastores rely on it",
	"storage-backend":                  datastore,
	"encryption-provider-config":       "Secrets are encrypted; `umiak secrets-encrypt rotate` gives them new keys",
	"egress-selector-config-file":      "umiak's tunnel reaches the nodes",
	"authorization-mode":               "it needs Node and RBAC in it, as Node,RBAC,Webhook",
	"external-hostname":                "set tls-san",
}

// ownedByControllerManager are kube-controller-manager's.
var ownedByControllerManager = with(map[string]string{
	"cluster-cidr":                                    "set cluster-cidr",
	"service-cluster-ip-range":                        "set service-cidr",
	"root-ca-file":                                    renewed,
	"service-account-private-key-file":                renewed,
	"cluster-signing-cert-file":                       renewed,
	"cluster-signing-key-file":                        renewed,
	"cluster-signing-kubelet-serving-cert-file":       renewed,
	"cluster-signing-kubelet-serving-key-file":        renewed,
	"cluster-signing-kubelet-client-cert-file":        renewed,
	"cluster-signing-kubelet-client-key-file":         renewed,
	"cluster-signing-kube-apiserver-client-cert-file": renewed,
	"cluster-signing-kube-apiserver-client-key-file":  renewed,
	"cluster-signing-legacy-unknown-cert-file":        renewed,
	"cluster-signing-legacy-unknown-key-file":         renewed,
}, ownedByBoth)

// ownedByScheduler are kube-scheduler's.
var ownedByScheduler = ownedByBoth

var ownedByBoth = map[string]string{
	"kubeconfig":                      connected,
	"master":                          connected,
	"authentication-kubeconfig":       connected,
	"authorization-kubeconfig":        connected,
	"tls-cert-file":                   renewed,
	"tls-private-key-file":            renewed,
	"leader-elect":                    elected,
	"leader-elect-lease-duration":     elected,
	"leader-elect-renew-deadline":     elected,
	"leader-elect-retry-period":       elected,
	"leader-elect-resource-lock":      elected,
	"leader-elect-resource-name":      elected,
	"leader-elect-resource-namespace": elected,
}

func with(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}
