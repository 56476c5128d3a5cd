// Package layout defines the paths of all files under the data and run directories.
//
// Every path is derived from the two roots, so several nodes can run on one host with nothing shared. Files that
// survive a reboot are under Data; sockets, mounts of running containers and the like are under Run. The package
// imports nothing of umiak; any package may call it.
package layout

import "path/filepath"

// Dirs are the two roots of one node: --data-dir and --run-dir.
type Dirs struct {
	Data string // /var/lib/umiak: survives a reboot
	Run  string // /run/umiak: a tmpfs
}

// Default is the Dirs of a node without settings.
var Default = Dirs{Data: "/var/lib/umiak", Run: "/run/umiak"}

// Registry is the folder in which the nodes of this machine that have other roots are registered, see
// instance.Registry.
const Registry = "/run/umiak-nodes"

func (d Dirs) data(p ...string) string { return filepath.Join(append([]string{d.Data}, p...)...) }
func (d Dirs) run(p ...string) string  { return filepath.Join(append([]string{d.Run}, p...)...) }

// Lock is the file that the process that uses the data directory has locked.
func (d Dirs) Lock() string { return d.data("lock") }

// NodeName is the file with the name of the node, see internal/nodename.
func (d Dirs) NodeName() string { return d.data("node-name") }

// Server is the folder of the control plane, 0700.
func (d Dirs) Server() string { return d.data("server") }

// DB is the folder of the datastore's files.
func (d Dirs) DB() string { return d.data("server", "db") }

// ServerPKI is the folder of the CAs and of the control plane's keys and certificates.
func (d Dirs) ServerPKI() string { return d.data("server", "pki") }

// EncryptionConfig is the file with the keys with which Secrets are encrypted at rest.
func (d Dirs) EncryptionConfig() string { return d.data("server", "encryption-config.yaml") }

// AdminKubeconfig is the kubeconfig of the cluster's administrator, which `umiak kubectl` uses.
func (d Dirs) AdminKubeconfig() string { return d.data("server", "admin.kubeconfig") }

// ServerKubeconfigs is the folder of the control plane components' kubeconfigs.
func (d Dirs) ServerKubeconfigs() string { return d.data("server", "kubeconfigs") }

// Manifests is the folder whose YAML files are applied to the cluster.
func (d Dirs) Manifests() string { return d.data("server", "manifests") }

// ServerToken is the file with the token for servers and agents that the first server created.
func (d Dirs) ServerToken() string { return d.data("server", "token") }

// AgentToken is the file with the token for agents that the first server created.
func (d Dirs) AgentToken() string { return d.data("server", "agent-token") }

// ResetRestored is the file with the snapshot that cluster-reset-restore-path has restored. A restore puts it into the
// new folder of the server, which takes the place of the old one in one step.
func (d Dirs) ResetRestored() string { return d.data("server", "reset-restored") }

// DatastoreSocket is the socket at which the API server reaches the datastore.
func (d Dirs) DatastoreSocket() string { return d.run("datastore.sock") }

// VolatileSocket is the socket at which the API server reaches the datastore of Leases and Events.
func (d Dirs) VolatileSocket() string { return d.run("volatile.sock") }

// StatusSocket is the socket at which `umiak status` reaches the running process; 0600.
func (d Dirs) StatusSocket() string { return d.run("status.sock") }

// ControlSocket is the socket at which commands of root run actions in the running process; 0600.
func (d Dirs) ControlSocket() string { return d.run("control.sock") }

// ProfileSocket is the socket that serves profiles of the process, with enable-pprof; 0600.
func (d Dirs) ProfileSocket() string { return d.run("pprof.sock") }

// ProxyGuard is the file with what the service proxy does not let Services take, for `umiak debug service`.
func (d Dirs) ProxyGuard() string { return d.run("proxy-guard.json") }

// PolicySocket is the socket at which the CNI plugin announces pods, so that their network policies are in force first.
func (d Dirs) PolicySocket() string { return d.run("policy.sock") }

// PodResolvConf is the resolv.conf of pods with dnsPolicy Default.
func (d Dirs) PodResolvConf() string { return d.run("resolv.conf") }

// HostResolvConf is the resolv.conf with the servers to which the node's DNS forwards.
func (d Dirs) HostResolvConf() string { return d.run("resolv-host.conf") }

// HostPorts is the folder in which the CNI plugin records the host ports of pods, one file per pod.
func (d Dirs) HostPorts() string { return d.run("hostports") }

// Agent is the folder of the node, 0700.
func (d Dirs) Agent() string { return d.data("agent") }

// AgentPKI is the folder of the node's keys and certificates and of the CAs that it trusts.
func (d Dirs) AgentPKI() string { return d.data("agent", "pki") }

// KubeletKubeconfig is the kubeconfig of the kubelet, as system:node:NAME.
func (d Dirs) KubeletKubeconfig() string { return d.data("agent", "kubelet.kubeconfig") }

// AgentKubeconfig is the kubeconfig of the proxy, DNS and the overlay.
func (d Dirs) AgentKubeconfig() string { return d.data("agent", "agent.kubeconfig") }

// NodePassword is the file with the password that proves that this machine has joined with the node's name; 0600.
func (d Dirs) NodePassword() string { return d.data("agent", "node-password") }

// Joined is the file with the cluster's settings from the last join or renewal.
func (d Dirs) Joined() string { return d.data("agent", "joined.json") }

// Servers is the file in which the node's load balancer stores the addresses of all servers.
func (d Dirs) Servers() string { return d.data("agent", "servers.json") }

// Addresses is the file with the node's last addresses, for a boot without a network.
func (d Dirs) Addresses() string { return d.data("agent", "addresses.json") }

// Images is the folder from which image archives are imported.
func (d Dirs) Images() string { return d.data("agent", "images") }

// Upgrade is the folder of an upgrade that the cluster has requested.
func (d Dirs) Upgrade() string { return d.data("agent", "upgrade") }

// UpgradeLock is the file that the process that upgrades this node has locked.
func (d Dirs) UpgradeLock() string { return d.run("upgrade.lock") }

// Bundle is the folder into which the embedded programs are unpacked, one subfolder per content hash.
func (d Dirs) Bundle() string { return d.data("agent", "bundle") }

// ContainerdRoot is the folder of containerd's persistent state.
func (d Dirs) ContainerdRoot() string { return d.data("agent", "containerd") }

// ContainerdState is the folder of containerd's state of running containers.
func (d Dirs) ContainerdState() string { return d.run("containerd") }

// ContainerdSocket is containerd's gRPC and CRI socket.
func (d Dirs) ContainerdSocket() string { return d.run("containerd", "containerd.sock") }

// Kubelet is the kubelet's root directory.
func (d Dirs) Kubelet() string { return d.data("agent", "kubelet") }

// PodLogs is the folder of the containers' logs.
func (d Dirs) PodLogs() string { return d.data("agent", "logs", "pods") }

// CNIConfig is the folder of the network configuration that containerd reads.
func (d Dirs) CNIConfig() string { return d.data("agent", "cni") }

// CNIState is the folder in which host-local records the addresses of containers.
func (d Dirs) CNIState() string { return d.run("cni") }

// Registries is the default path of the configuration of registries.
func (d Dirs) Registries() string { return "/etc/umiak/registries.yaml" }

// NodeState is the file in which the agent records what it changed on the host (sysctls, cgroups, interfaces), so that
// cleanup can restore it.
func (d Dirs) NodeState() string { return d.data("agent", "node-state.json") }
