// sarama BOOTSTRAP [COUNT]: sarama, idempotent producer, consumer group, admin client.
package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/IBM/sarama"

	"kittiwake/clients/scenario"
)

var codecs = map[string]sarama.CompressionCodec{
	"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
	"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	bootstrap, count := scenario.Arguments()
	brokers := []string{bootstrap}
	admin, err := sarama.NewClusterAdmin(brokers, config("none"))
	must(err)
	defer admin.Close()
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		topic := scenario.Topic("sarama", codec)
		must(admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: scenario.Partitions, ReplicationFactor: -1}, false))
		produce(brokers, topic, codec, count)
		consume(brokers, topic, count)
		must(admin.DeleteTopic(topic))
		fmt.Printf("sarama: %d records, %s\n", count, codec)
	}
}

func config(codec string) *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Producer.Compression = codecs[codec]
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Idempotent = true
	config.Producer.Return.Successes = true
	config.Net.MaxOpenRequests = 1
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Return.Errors = true
	return config
}

func produce(brokers []string, topic, codec string, count int) {
	producer, err := sarama.NewAsyncProducer(brokers, config(codec))
	must(err)
	go func() {
		for i := range count {
			producer.Input() <- &sarama.ProducerMessage{
				Topic: topic, Key: sarama.ByteEncoder(scenario.Key(i)), Value: sarama.ByteEncoder(scenario.Value(i)),
			}
		}
	}()
	deadline := time.After(2 * time.Minute)
	for acknowledged := 0; acknowledged < count; {
		select {
		case <-producer.Successes():
			acknowledged++
		case err := <-producer.Errors():
			log.Fatal(err)
		case <-deadline:
			log.Fatalf("%s: %d of %d acknowledged", topic, acknowledged, count)
		}
	}
	must(producer.Close())
}

func consume(brokers []string, topic string, count int) {
	group, err := sarama.NewConsumerGroup(brokers, topic, config("none"))
	must(err)
	defer group.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	handler := &handler{verifier: scenario.NewVerifier(count), records: make(chan *sarama.ConsumerMessage, 1000)}
	go func() {
		for ctx.Err() == nil {
			if err := group.Consume(ctx, []string{topic}, handler); err != nil {
				log.Fatal(err)
			}
		}
	}()
	for !handler.verifier.Complete() {
		select {
		case message := <-handler.records:
			handler.verifier.Take(message.Partition, message.Offset, message.Key, message.Value)
		case err := <-group.Errors():
			log.Fatal(err)
		case <-ctx.Done():
			log.Fatalf("%s: %d of %d records came back", topic, handler.verifier.Found, count)
		}
	}
}

type handler struct {
	verifier *scenario.Verifier
	records  chan *sarama.ConsumerMessage
}

func (*handler) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (*handler) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// ConsumeClaim runs once per partition; the channel keeps each partition's order.
func (h *handler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for message := range claim.Messages() {
		select {
		case h.records <- message:
			session.MarkMessage(message, "")
		case <-session.Context().Done():
			return nil
		}
	}
	return nil
}
