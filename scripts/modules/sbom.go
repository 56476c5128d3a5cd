package main

import (
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strings"
)

// The parts of CycloneDX 1.6 that a bill of Go programs needs: https://cyclonedx.org/docs/1.6/json/.
type bom struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

// writeSBOM lists the programs and what each links. Go does not note which module needs which, so the modules of a
// program stand directly below it. Libraries that are no modules belong to runc, the only program that links C.
func writeSBOM(w io.Writer, name, version string, programs []program, libraries []library) error {
	b := bom{Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{component{
		Type: "application", Ref: name, Name: name, Version: version, PURL: golangPURL(ours, version),
	}}}
	top := dependency{Ref: name}
	var edges []dependency
	for _, p := range programs {
		ref := "program:" + p.Name
		of := p.Main.Version
		if of == "" {
			of = version
		}
		b.Components = append(b.Components, component{
			Type: "application", Ref: ref, Name: p.Name, Version: of, PURL: golangPURL(p.Main.Path, of),
			Hashes: []hash{{Alg: "SHA-256", Content: p.Sum}},
		})
		top.DependsOn = append(top.DependsOn, ref)
		e := dependency{Ref: ref, DependsOn: []string{standardLibrary(p.Go).Ref}}
		for _, m := range p.Modules {
			if m.Path != ours {
				e.DependsOn = append(e.DependsOn, golangPURL(m.Path, m.Version))
			}
		}
		if p.Name == "runc" {
			for _, l := range libraries {
				e.DependsOn = append(e.DependsOn, debianPURL(l))
			}
		}
		slices.Sort(e.DependsOn)
		e.DependsOn = slices.Compact(e.DependsOn)
		edges = append(edges, e)
	}
	for _, v := range goVersions(programs) {
		b.Components = append(b.Components, standardLibrary(v))
	}
	for _, l := range libraries {
		b.Components = append(b.Components, component{Type: "library",
			Ref: debianPURL(l), Name: l.Name, Version: l.Version, PURL: debianPURL(l)})
	}
	for _, m := range everyModule(programs) {
		purl := golangPURL(m.Path, m.Version)
		c := component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, PURL: purl}
		if m.Sum != "" {
			// It is the hash of a listing of files and not of a file, so none of CycloneDX's hashes.
			c.Properties = []property{{Name: "umiak:go.sum", Value: m.Sum}}
		}
		// The same source under two import paths is one component.
		if !slices.ContainsFunc(b.Components, func(o component) bool { return o.Ref == purl }) {
			b.Components = append(b.Components, c)
		}
	}
	b.Dependencies = append([]dependency{top}, edges...)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(b)
}

func standardLibrary(version string) component {
	purl := golangPURL("std", strings.TrimPrefix(version, "go"))
	return component{Type: "library", Ref: purl, Name: "std", Version: version, PURL: purl}
}

// golangPURL is what vulnerability scanners look a module up by. The package URL specification wants small letters.
func golangPURL(path, version string) string {
	if version == "" {
		return "pkg:golang/" + strings.ToLower(path)
	}
	return "pkg:golang/" + strings.ToLower(path) + "@" + purlVersion(version)
}

func debianPURL(l library) string { return "pkg:deb/debian/" + l.Name + "@" + purlVersion(l.Version) }

// purlVersion escapes also the plus sign, which some readers take for a space.
func purlVersion(v string) string { return strings.ReplaceAll(url.PathEscape(v), "+", "%2B") }
