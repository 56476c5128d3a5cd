package server

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	upgradesapi "github.com/umiak-io/umiak/internal/upgrades"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/upgrades"
)

// upgradesOff says whether the settings take upgrades by the cluster away.
func (s *Server) upgradesOff() bool { return slices.Contains(s.cfg.Disable, upgradesapi.Manifest) }

// runUpgrades brings the cluster's nodes to the versions that Upgrade objects name.
func (s *Server) runUpgrades(ctx context.Context, ready func()) error {
	if s.upgradesOff() {
		ready()
		<-ctx.Done()
		return nil
	}
	rc, err := s.clients.Config("umiak-upgrades")
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	objects, err := dynamic.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return upgrades.New(upgrades.Config{Client: client, Dynamic: objects, Version: version.Version, Log: s.log}).Run(ctx, ready)
}
