package containerd_test

func serveRegistry(childConfig) error { return nil }
