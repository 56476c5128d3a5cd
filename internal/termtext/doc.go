// Package termtext keeps the words of others, as nodes and images, from commanding the terminal on which they are shown.
package termtext
