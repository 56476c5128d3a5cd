// Package rights reads, writes and compares the list of what an identity may do, as a test has found it by trying: a
// file for people to read, one right a line, with the reason for each.
package rights
