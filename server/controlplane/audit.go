package controlplane

import (
	"fmt"
	"os"
	"path/filepath"

	auditpolicy "k8s.io/apiserver/pkg/audit/policy"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/yamlfile"
)

// defaultAudit records who changed what, without the content: requests hold secrets.
const defaultAudit = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources:
  - group: ""
    resources: [events]
  - group: events.k8s.io
  - group: coordination.k8s.io
    resources: [leases]
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: Metadata
  resources:
  - group: ""
    resources: [secrets, pods/exec, pods/attach, pods/portforward, pods/proxy, services/proxy, nodes/proxy]
- level: None
`

// EnsureAudit writes the default policy to a file, and makes the folder of the log. An empty log means that nothing is
// audited.
func EnsureAudit(policy, log string) error {
	if log == "" {
		return nil
	}
	if _, err := atomicfile.WriteIfChanged(policy, []byte(defaultAudit), 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
		return fmt.Errorf("make folder of audit-log: %w", err)
	}
	return nil
}

// CheckAuditPolicy returns why the API server would not start with a policy file.
func CheckAuditPolicy(file string) error {
	text, err := yamlfile.Read(file)
	if err != nil {
		return err
	}
	if _, err := auditpolicy.LoadPolicyFromBytes(text); err != nil {
		return fmt.Errorf("%s is not an audit policy: %w", file, err)
	}
	return nil
}
