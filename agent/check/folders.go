package check

import (
	"context"
	"errors"

	hostfolders "github.com/umiak-io/umiak/agent/host/folders"
)

// kubeletFolders checks the folders that umiak mounts at fixed paths.
func kubeletFolders(_ context.Context, cfg Config) []Result {
	var out []Result
	for _, f := range hostfolders.Of(cfg.Dirs) {
		err := f.Check()
		switch {
		case errors.Is(err, hostfolders.ErrForeign) && f.Optional:
			out = append(out, warn("kubelet folders",
				"stop that program if log collectors are to find the logs of pods", "%v", err))
		case errors.Is(err, hostfolders.ErrForeign):
			out = append(out, missing("kubelet folders",
				"stop the other kubelet and move the folder away: mv "+f.At+" "+f.At+".old", "%v", err))
		case err != nil:
			out = append(out, missing("kubelet folders", "", "%v", err))
		}
	}
	if len(out) == 0 {
		out = append(out, ok("kubelet folders", "%s and %s can be had", hostfolders.KubeletRoot, hostfolders.PodLogs))
	}
	return out
}
