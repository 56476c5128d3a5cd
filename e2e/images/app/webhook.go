package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// review is as much of an admission.k8s.io/v1 AdmissionReview as is needed; the API's own types would
// make the image ten times as large.
type review struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Request    *struct {
		UID    string `json:"uid"`
		Name   string `json:"name"`
		Object struct {
			Metadata struct {
				Labels map[string]string `json:"labels"`
			} `json:"metadata"`
		} `json:"object"`
	} `json:"request,omitempty"`
	Response *response `json:"response,omitempty"`
}

type response struct {
	UID       string            `json:"uid"`
	Allowed   bool              `json:"allowed"`
	Status    map[string]string `json:"status,omitempty"`
	PatchType string            `json:"patchType,omitempty"`
	Patch     []byte            `json:"patch,omitempty"`
}

// webhook refuses objects whose names begin with forbidden- and gives the others the label seen=yes.
func webhook(_ context.Context, args []string, _ io.Writer) error {
	if len(args) != 1 {
		return errors.New("webhook takes the folder with tls.crt and tls.key")
	}
	srv := &http.Server{Addr: ":8443", ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var in review
			if err := json.NewDecoder(io.LimitReader(r.Body, 8<<20)).Decode(&in); err != nil || in.Request == nil {
				http.Error(w, "not an AdmissionReview", http.StatusBadRequest)
				return
			}
			_ = json.NewEncoder(w).Encode(review{APIVersion: in.APIVersion, Kind: in.Kind, Response: decide(in)})
		})}
	return srv.ListenAndServeTLS(filepath.Join(args[0], "tls.crt"), filepath.Join(args[0], "tls.key"))
}

func decide(in review) *response {
	out := &response{UID: in.Request.UID}
	if strings.HasPrefix(in.Request.Name, "forbidden-") {
		out.Status = map[string]string{"message": "the webhook says no"}
		return out
	}
	out.Allowed, out.PatchType = true, "JSONPatch"
	out.Patch = []byte(`[{"op":"add","path":"/metadata/labels/seen","value":"yes"}]`)
	if in.Request.Object.Metadata.Labels == nil {
		out.Patch = []byte(`[{"op":"add","path":"/metadata/labels","value":{"seen":"yes"}}]`)
	}
	return out
}
