package config

// Nearest returns the name in known with the smallest edit distance to name, empty if none is near.
func Nearest(name string, known []string) string {
	best, dist := "", 1+max(2, len(name)/3)
	for _, k := range known {
		if d := edits(name, k); d < dist && d < len(k) || d == dist && best != "" && k < best {
			best, dist = k, d
		}
	}
	return best
}

// edits returns the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cur := row[j+1]
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(row[j+1]+1, row[j]+1, prev+cost)
			prev = cur
		}
	}
	return row[len(b)]
}
