// Package scenario is what every Go client is asked to do: COUNT keyed records per codec, read back identical and in order.
package scenario

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"strconv"
)

// Partitions of every topic.
const Partitions = 4

const keys = 1000

// Key of record i.
func Key(i int) []byte { return fmt.Appendf(nil, "key-%d", i%keys) }

// Value of record i: it says i and repeats itself, so that codecs have something to do.
func Value(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "record %d ", i), 8) }

// Topic is a fresh name.
func Topic(client, codec string) string {
	return fmt.Sprintf("%s-%s-%s", client, codec, rand.Text()[:8])
}

// Arguments of every program: BOOTSTRAP [COUNT].
func Arguments() (bootstrap string, count int) {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatalf("usage: %s BOOTSTRAP [COUNT]", os.Args[0])
	}
	count = 100_000
	if len(os.Args) > 2 {
		var err error
		if count, err = strconv.Atoi(os.Args[2]); err != nil {
			log.Fatal(err)
		}
	}
	return os.Args[1], count
}

// Verifier takes records in the order a consumer was given them.
type Verifier struct {
	count      int
	Found      int
	seen       []bool
	lastOffset map[int32]int64
	lastOfKey  map[string]int
}

// NewVerifier expects count records.
func NewVerifier(count int) *Verifier {
	return &Verifier{count: count, seen: make([]bool, count), lastOffset: map[int32]int64{}, lastOfKey: map[string]int{}}
}

// Complete tells whether every record was there.
func (v *Verifier) Complete() bool { return v.Found == v.count }

// Take ends the program if the record is not what was sent, or not in its place.
func (v *Verifier) Take(partition int32, offset int64, key, value []byte) {
	var i int
	if _, err := fmt.Sscanf(string(value[:min(len(value), 32)]), "record %d", &i); err != nil || i < 0 || i >= v.count {
		log.Fatalf("%d@%d holds no record of this run: %q", partition, offset, value)
	}
	if !bytes.Equal(key, Key(i)) || !bytes.Equal(value, Value(i)) {
		log.Fatalf("record %d at %d@%d came back changed", i, partition, offset)
	}
	if last, ok := v.lastOffset[partition]; ok && offset <= last {
		log.Fatalf("%d@%d came after %d", partition, offset, last)
	}
	if last, ok := v.lastOfKey[string(key)]; ok && i <= last {
		log.Fatalf("record %d came after %d of the same key", i, last)
	}
	if v.seen[i] {
		log.Fatalf("record %d came twice", i)
	}
	v.seen[i], v.lastOffset[partition], v.lastOfKey[string(key)] = true, offset, i
	v.Found++
}
