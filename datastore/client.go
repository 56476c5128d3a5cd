package datastore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Client returns an etcd client of a Store whose Run has called ready. The caller closes it.
func Client(ctx context.Context, st Store) (*clientv3.Client, error) {
	cfg := clientv3.Config{
		Endpoints: strings.Split(st.Endpoint(), ","), Context: ctx, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30))},
	}
	if t := st.TLS(); t.CAFile != "" || t.CertFile != "" {
		var err error
		if cfg.TLS, err = (transport.TLSInfo{TrustedCAFile: t.CAFile, CertFile: t.CertFile,
			KeyFile: t.KeyFile}).ClientConfig(); err != nil {
			return nil, fmt.Errorf("reach the datastore: %w", err)
		}
	}
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("reach the datastore: %w", err)
	}
	return c, nil
}
