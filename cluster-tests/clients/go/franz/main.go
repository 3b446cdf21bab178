// franz BOOTSTRAP [COUNT]: franz-go, idempotent producer, consumer group, admin client.
package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kittiwake/clients/scenario"
)

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func client(bootstrap string, options ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(bootstrap))...)
	must(err)
	return client
}

func main() {
	bootstrap, count := scenario.Arguments()
	admin := kadm.NewClient(client(bootstrap))
	defer admin.Close()
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		topic := scenario.Topic("franz", codec)
		_, err := admin.CreateTopic(ctx, scenario.Partitions, -1, nil, topic)
		must(err)
		produce(ctx, bootstrap, topic, codec, count)
		consume(ctx, bootstrap, topic, count)
		lag(ctx, admin, topic, count)
		_, err = admin.DeleteTopic(ctx, topic)
		must(err)
		_, err = admin.DeleteGroup(ctx, topic)
		must(err)
		cancel()
		fmt.Printf("franz-go: %d records, %s\n", count, codec)
	}
}

func produce(ctx context.Context, bootstrap, topic, codec string, count int) {
	producer := client(bootstrap, kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codecs[codec]))
	defer producer.Close()
	failed := make(chan error, 1)
	for i := range count {
		producer.Produce(ctx, &kgo.Record{Key: scenario.Key(i), Value: scenario.Value(i)}, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	must(producer.Flush(ctx))
	select {
	case err := <-failed:
		log.Fatal(err)
	default:
	}
}

func consume(ctx context.Context, bootstrap, topic string, count int) {
	consumer := client(bootstrap, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer consumer.Close()
	verifier := scenario.NewVerifier(count)
	for !verifier.Complete() {
		fetches := consumer.PollFetches(ctx)
		for _, failed := range fetches.Errors() {
			log.Fatalf("%s: %d of %d records came back: %v", topic, verifier.Found, count, failed.Err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			verifier.Take(record.Partition, record.Offset, record.Key, record.Value)
		})
	}
	must(consumer.CommitUncommittedOffsets(ctx))
	must(consumer.LeaveGroupContext(ctx))
}

// lag checks what the group committed against the log's ends, with the APIs of an operator's tool.
func lag(ctx context.Context, admin *kadm.Client, topic string, count int) {
	offsets, err := admin.FetchOffsets(ctx, topic)
	must(err)
	ends, err := admin.ListEndOffsets(ctx, topic)
	must(err)
	var total int64
	ends.Each(func(end kadm.ListedOffset) {
		must(end.Err)
		committed, ok := offsets.Lookup(topic, end.Partition)
		if !ok || committed.At != end.Offset {
			log.Fatalf("%s/%d: committed %v, log end %d", topic, end.Partition, committed, end.Offset)
		}
		total += end.Offset
	})
	if total != int64(count) {
		log.Fatalf("%s holds %d records", topic, total)
	}
}
