package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Collect writes what there is to know of the cluster's state into a folder below Evidence and returns
// it. What cannot be had is noted in place of the answer.
func (c *Cluster) Collect(name string) string {
	dir := filepath.Join(c.Evidence, strings.ReplaceAll(name, "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for file, argv := range map[string][]string{
		"status.txt": {"umiak", "status"},
		"events.txt": {"umiak", "kubectl", "--request-timeout=5s", "get", "events", "-A",
			"--sort-by=.metadata.creationTimestamp"},
		"pods.yaml": {"umiak", "kubectl", "--request-timeout=5s", "get", "pods", "-A", "-o", "yaml"},
		"objects.txt": {"umiak", "kubectl", "--request-timeout=5s", "get",
			"nodes,pods,services,endpointslices,deployments,jobs", "-A", "-o", "wide"},
		"containers.txt":  {"umiak", "ctr", "-n", "k8s.io", "containers", "list"},
		"tasks.txt":       {"umiak", "ctr", "-n", "k8s.io", "tasks", "list"},
		"images.txt":      {"umiak", "ctr", "-n", "k8s.io", "images", "list"},
		"nftables.txt":    {"nft", "list", "ruleset"},
		"links.txt":       {"ip", "-d", "address"},
		"routes.txt":      {"ip", "route", "show", "table", "all"},
		"sockets.txt":     {"ss", "-anp"},
		"processes.txt":   {"ps", "-ef"},
		"mounts.txt":      {"cat", "/proc/1/mountinfo"},
		"kernel.txt":      {"dmesg"},
		"disk.txt":        {"df", "-h", "/var/lib"},
		"pod-network.txt": {"sh", "-c", "for n in /run/netns/*; do echo $n; nsenter --net=$n ip address; done"},
		"journal.txt":     {"/usr/bin/journalctl", "--no-pager", "-o", "short-precise", "-n", "10000"},
	} {
		if strings.HasSuffix(argv[0], "journalctl") && !c.service {
			continue // it would show the host's
		}
		out, err := c.M.Run(ctx, argv[0], argv[1:]...)
		if err != nil {
			out += fmt.Sprintln("\n", err)
		}
		_ = os.WriteFile(filepath.Join(dir, file), []byte(out), 0o644)
	}
	return dir
}
