// Package layout is the one place that knows where files lie under the data and run directories.
//
// Every path is derived from the two roots, so several nodes can run on one host with nothing shared.
// What survives a reboot is under Data; sockets, mounts of running containers and the like under Run.
package layout

import "path/filepath"

// Dirs are the two roots of one node: --data-dir and --run-dir.
type Dirs struct {
	Data string // /var/lib/umiak: survives a reboot
	Run  string // /run/umiak: a tmpfs
}

// Default are the roots of a node for which nothing is set.
var Default = Dirs{Data: "/var/lib/umiak", Run: "/run/umiak"}

// Registry is where the nodes of this machine that have other roots say so, see instance.Registry.
const Registry = "/run/umiak-nodes"

func (d Dirs) data(p ...string) string { return filepath.Join(append([]string{d.Data}, p...)...) }
func (d Dirs) run(p ...string) string  { return filepath.Join(append([]string{d.Run}, p...)...) }

// Lock is held by the process that owns the data directory.
func (d Dirs) Lock() string { return d.data("lock") }

// NodeName holds the name under which this machine has joined, see internal/nodename.
func (d Dirs) NodeName() string { return d.data("node-name") }

// Server is the control plane's own folder, 0700.
func (d Dirs) Server() string { return d.data("server") }

// DB is the folder of the datastore's files.
func (d Dirs) DB() string { return d.data("server", "db") }

// ServerPKI is the folder of the CAs, the control plane's keys and certificates.
func (d Dirs) ServerPKI() string { return d.data("server", "pki") }

// EncryptionConfig is the key file with which Secrets are encrypted at rest.
func (d Dirs) EncryptionConfig() string { return d.data("server", "encryption-config.yaml") }

// AdminKubeconfig is the cluster administrator's kubeconfig, found by `umiak kubectl`.
func (d Dirs) AdminKubeconfig() string { return d.data("server", "admin.kubeconfig") }

// ServerKubeconfigs is the folder of the control plane components' kubeconfigs.
func (d Dirs) ServerKubeconfigs() string { return d.data("server", "kubeconfigs") }

// Manifests is the folder whose YAML files are applied to the cluster.
func (d Dirs) Manifests() string { return d.data("server", "manifests") }

// ServerToken is the token with which servers and agents join, as the first server made it.
func (d Dirs) ServerToken() string { return d.data("server", "token") }

// AgentToken is the token with which agents join, as the first server made it.
func (d Dirs) AgentToken() string { return d.data("server", "agent-token") }

// DatastoreSocket is where the API server reaches the datastore.
func (d Dirs) DatastoreSocket() string { return d.run("datastore.sock") }

// VolatileSocket is where the API server reaches the datastore of Leases and Events.
func (d Dirs) VolatileSocket() string { return d.run("volatile.sock") }

// StatusSocket is where `umiak status` reaches the running process; 0600.
func (d Dirs) StatusSocket() string { return d.run("status.sock") }

// ControlSocket is where root's commands have the running process do something; 0600.
func (d Dirs) ControlSocket() string { return d.run("control.sock") }

// ProxyGuard is what the service proxy does not let Services take, for `umiak debug service`.
func (d Dirs) ProxyGuard() string { return d.run("proxy-guard.json") }

// PolicySocket is where the CNI plugin announces pods, so that their network policies are in force first.
func (d Dirs) PolicySocket() string { return d.run("policy.sock") }

// PodResolvConf is the resolv.conf of pods with dnsPolicy Default.
func (d Dirs) PodResolvConf() string { return d.run("resolv.conf") }

// HostResolvConf names the servers to which the node's DNS forwards.
func (d Dirs) HostResolvConf() string { return d.run("resolv-host.conf") }

// HostPorts is where the CNI plugin keeps which ports of the host lead to which pod, a file for each pod.
func (d Dirs) HostPorts() string { return d.run("hostports") }

// Agent is the node's own folder, 0700.
func (d Dirs) Agent() string { return d.data("agent") }

// AgentPKI is the folder of the node's keys, certificates and the CAs that it trusts.
func (d Dirs) AgentPKI() string { return d.data("agent", "pki") }

// KubeletKubeconfig is the kubelet's, as system:node:NAME.
func (d Dirs) KubeletKubeconfig() string { return d.data("agent", "kubelet.kubeconfig") }

// AgentKubeconfig is what the proxy, DNS and the overlay use.
func (d Dirs) AgentKubeconfig() string { return d.data("agent", "agent.kubeconfig") }

// NodePassword proves that this is the machine that has joined under the node's name; 0600.
func (d Dirs) NodePassword() string { return d.data("agent", "node-password") }

// Joined is what the cluster told this node when it joined or renewed its certificates.
func (d Dirs) Joined() string { return d.data("agent", "joined.json") }

// Servers is the list of all servers that the node's load balancer keeps.
func (d Dirs) Servers() string { return d.data("agent", "servers.json") }

// Addresses is where the node's last addresses are kept, for a boot without a cable.
func (d Dirs) Addresses() string { return d.data("agent", "addresses.json") }

// Images is the folder from which image archives are imported.
func (d Dirs) Images() string { return d.data("agent", "images") }

// Upgrade is where an upgrade that the cluster has asked for says what it does.
func (d Dirs) Upgrade() string { return d.data("agent", "upgrade") }

// UpgradeLock is held by whoever upgrades this node.
func (d Dirs) UpgradeLock() string { return d.run("upgrade.lock") }

// Bundle is where the embedded programs are unpacked, a folder per content hash.
func (d Dirs) Bundle() string { return d.data("agent", "bundle") }

// ContainerdRoot is containerd's persistent state.
func (d Dirs) ContainerdRoot() string { return d.data("agent", "containerd") }

// ContainerdState is containerd's state of running containers.
func (d Dirs) ContainerdState() string { return d.run("containerd") }

// ContainerdSocket is containerd's gRPC and CRI socket.
func (d Dirs) ContainerdSocket() string { return d.run("containerd", "containerd.sock") }

// Kubelet is the kubelet's root directory.
func (d Dirs) Kubelet() string { return d.data("agent", "kubelet") }

// PodLogs is the folder of the containers' logs.
func (d Dirs) PodLogs() string { return d.data("agent", "logs", "pods") }

// CNIConfig is the folder of the network configuration that containerd reads.
func (d Dirs) CNIConfig() string { return d.data("agent", "cni") }

// CNIState is where host-local keeps which address belongs to which container.
func (d Dirs) CNIState() string { return d.run("cni") }

// Registries is the default place of the registry mirrors' configuration.
func (d Dirs) Registries() string { return "/etc/umiak/registries.yaml" }

// NodeState is where the agent notes what it changed on the host (sysctls, cgroups, interfaces), so
// that cleanup can put it back.
func (d Dirs) NodeState() string { return d.data("agent", "node-state.json") }
