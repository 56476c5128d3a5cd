package host

import "errors"

// Machine describes the machine that a node runs on, as far as the node's parts need it.
type Machine struct {
	Journal      *Journal
	Cgroup       Cgroup
	Capabilities Capabilities
	OOMScoreAdj  int // of this process
}

// Examine reads the journal from its file and looks at the cgroup hierarchy, in which cgroupRoot holds the pods, and at
// the rights of this process.
func Examine(journal, cgroupRoot string) (*Machine, error) {
	m := &Machine{}
	var errs [4]error
	m.Journal, errs[0] = OpenJournal(journal)
	m.Cgroup, errs[1] = DetectCgroup(cgroupRoot)
	m.Capabilities, errs[2] = DetectCapabilities()
	m.OOMScoreAdj, errs[3] = OOMScoreAdj()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return m, nil
}
