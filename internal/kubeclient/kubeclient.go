package kubeclient

import (
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Source makes clients from one kubeconfig file. Each call reads the file.
type Source struct {
	Kubeconfig string // path of the file
}

// Config returns a client configuration. userAgent names the caller in the API server's logs and metrics.
func (s Source) Config(userAgent string) (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", s.Kubeconfig, err)
	}
	return rest.AddUserAgent(c, userAgent), nil
}

// Client returns a client whose requests, watches apart, take timeout at most; 0 means no limit.
func (s Source) Client(userAgent string, timeout time.Duration) (kubernetes.Interface, error) {
	c, err := s.Config(userAgent)
	if err != nil {
		return nil, err
	}
	c.Timeout = timeout
	return Of(c)
}

// Maker returns a function that makes a client without a limit on its requests.
func (s Source) Maker(userAgent string) func() (kubernetes.Interface, error) {
	return func() (kubernetes.Interface, error) { return s.Client(userAgent, 0) }
}

// ConfigMaker returns a function that returns a client configuration.
func (s Source) ConfigMaker(userAgent string) func() (*rest.Config, error) {
	return func() (*rest.Config, error) { return s.Config(userAgent) }
}

// Of returns the client of a configuration.
func Of(c *rest.Config) (kubernetes.Interface, error) {
	k, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", c.Host, err)
	}
	return k, nil
}
