//! Clients at work: librdkafka producers and consumers that record what they do and see.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::history::{Outcome, Read, Recorder, SendId, Value};

/// One poll of a consumer; short, so that a stopped workload ends soon.
const POLL: Duration = Duration::from_millis(100);
/// How long a producer leaves its full queue alone.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);
/// Ten thousand partitions of a debug build take their time.
const CREATE_DEADLINE: Duration = Duration::from_secs(60);
/// How long everything sent may take to be acknowledged once the system is well again.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// What the producers of a workload do.
#[derive(Debug, Clone)]
pub struct Load {
    /// The topic, which must exist.
    pub topic: String,
    /// Its number of partitions; sends go round them.
    pub partitions: i32,
    /// How many producers.
    pub producers: u32,
    /// Size of one record's body in bytes.
    pub record_bytes: usize,
    /// `enable.idempotence`.
    pub idempotent: bool,
    /// `compression.type`.
    pub compression: &'static str,
    /// Records one producer sends per second at most: enough to be killed in the middle of, and few enough that a history
    /// fits in memory.
    pub records_per_second: u32,
    /// How many consumers read all partitions meanwhile.
    pub consumers: u32,
    /// How long clients wait for an answer before they give a connection up (`socket.timeout.ms`). A killed node closes its
    /// connections; one that hangs or is cut off does not, so how soon clients go on depends on this, too.
    pub answer_timeout: Duration,
}

impl Load {
    /// Two idempotent producers and a consumer on three partitions of `topic`.
    pub fn of(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            partitions: 3,
            producers: 2,
            record_bytes: 400,
            idempotent: true,
            compression: "none",
            records_per_second: 8_000,
            consumers: 1,
            answer_timeout: Duration::from_secs(60),
        }
    }
}

/// Running producers and consumers; [`finish`](Self::finish) ends them.
#[derive(Debug)]
pub struct Workload {
    load: Load,
    bootstrap: String,
    recorder: Recorder,
    stop: Arc<AtomicBool>,
    producers: Vec<JoinHandle<Result<()>>>,
    consumers: Vec<JoinHandle<Result<()>>>,
}

/// Assignment numbers are unique in a process, so histories can be joined.
static ASSIGNMENTS: AtomicU32 = AtomicU32::new(0);

fn next_assignment() -> u32 {
    ASSIGNMENTS.fetch_add(1, Ordering::Relaxed)
}

/// A client configuration with what every client of these tests shares.
pub fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("log_level", "0")
        .set("topic.metadata.refresh.interval.ms", "1000")
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100");
    config
}

/// Sends a record of `bytes` with each of these sequence numbers to partition 0 of `topic`. All in-sync replicas have them
/// when this returns.
pub fn produce_all(
    bootstrap: &str,
    topic: &str,
    sequences: Range<u64>,
    bytes: usize,
) -> Result<()> {
    let producer: BaseProducer = client(bootstrap).set("acks", "all").create()?;
    for sequence in sequences {
        let value = Value {
            producer: 0,
            sequence,
        };
        let payload = value.payload(bytes);
        let record = BaseRecord::<(), _>::to(topic).partition(0);
        producer
            .send(record.payload(&payload))
            .map_err(|(error, _)| error)?;
        producer.poll(Duration::ZERO);
    }
    Ok(producer.flush(DRAIN_DEADLINE)?)
}

/// The same servers, beginning with another one: librdkafka tries them in an order of its own, but not always the same.
fn rotated(bootstrap: &str, by: u32) -> String {
    let mut servers: Vec<&str> = bootstrap.split(',').collect();
    let by = by as usize % servers.len();
    servers.rotate_left(by);
    servers.join(",")
}

/// Creates a topic with the cluster's replication factor and waits until it can be used.
pub fn create_topic(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    config: &[(&str, &str)],
) -> Result<()> {
    let replication = TopicReplication::Fixed(-1);
    create(
        bootstrap,
        NewTopic::new(topic, partitions, replication),
        config,
    )
}

/// Creates a topic whose partitions have these replicas, the preferred leader first.
pub fn create_topic_on(
    bootstrap: &str,
    topic: &str,
    replicas: &[Vec<usize>],
    config: &[(&str, &str)],
) -> Result<()> {
    let replicas: Vec<Vec<i32>> = replicas
        .iter()
        .map(|nodes| nodes.iter().map(|&node| Ok(i32::try_from(node)?)).collect())
        .collect::<Result<_>>()?;
    let replicas: Vec<&[i32]> = replicas.iter().map(Vec::as_slice).collect();
    let partitions = i32::try_from(replicas.len())?;
    let replication = TopicReplication::Variable(&replicas);
    create(
        bootstrap,
        NewTopic::new(topic, partitions, replication),
        config,
    )
}

fn create<'a>(bootstrap: &str, mut new: NewTopic<'a>, config: &[(&'a str, &'a str)]) -> Result<()> {
    let admin: AdminClient<_> = client(bootstrap).create()?;
    for (key, value) in config {
        new = new.set(key, value);
    }
    let options = AdminOptions::new().request_timeout(Some(CREATE_DEADLINE));
    let results = block_on(admin.create_topics([&new], &options))?;
    for result in results {
        result.map_err(|(topic, code)| anyhow!("creating {topic}: {code}"))?;
    }
    Ok(())
}

/// Deletes a topic.
pub fn delete_topic(bootstrap: &str, topic: &str) -> Result<()> {
    let admin: AdminClient<_> = client(bootstrap).create()?;
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(20)));
    for result in block_on(admin.delete_topics(&[topic], &options))? {
        result.map_err(|(topic, code)| anyhow!("deleting {topic}: {code}"))?;
    }
    Ok(())
}

/// Runs one future to its end on this thread; librdkafka's admin client is asynchronous, these tests are not.
fn block_on<F: Future>(future: F) -> F::Output {
    use std::task::{Context, Poll, Wake, Waker};
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

impl Workload {
    /// Starts the clients.
    pub fn start(bootstrap: &str, load: Load, recorder: Recorder) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let producers = (0..load.producers)
            .map(|producer| {
                let (load, recorder, stop) = (load.clone(), recorder.clone(), stop.clone());
                let servers = rotated(bootstrap, producer);
                let client = recording_producer(&servers, &load, recorder.clone(), producer)?;
                Ok(std::thread::spawn(move || {
                    produce(&client, &load, producer, &recorder, &stop)
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        let consumers = (0..load.consumers)
            .map(|consumer| {
                let servers = rotated(bootstrap, consumer + 1);
                let client = reader(&servers, &load)?;
                let (recorder, stop) = (recorder.clone(), stop.clone());
                Ok(std::thread::spawn(move || {
                    consume(&client, next_assignment(), &stop, |read| {
                        recorder.read(read)
                    })
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            load,
            bootstrap: bootstrap.to_owned(),
            recorder,
            stop,
            producers,
            consumers,
        })
    }

    /// Lets `more` further sends be acknowledged, at most `deadline` long: proof that the system is at work.
    pub fn progress(&self, more: usize, deadline: Duration) -> Result<()> {
        let goal = self.recorder.acknowledged() + more;
        crate::wait::until(&format!("{more} more acknowledgements"), deadline, || {
            (self.recorder.acknowledged() >= goal).then_some(())
        })
    }

    /// Waits until a record sent from now on has been acknowledged in every partition, at most `deadline` long.
    pub fn progress_everywhere(&self, deadline: Duration) -> Result<()> {
        let from = self.recorder.now();
        let mut missing = Vec::new();
        crate::wait::until("acknowledgements in every partition", deadline, || {
            missing = self
                .recorder
                .unacknowledged_since(from, self.load.partitions);
            missing.is_empty().then_some(())
        })
        .with_context(|| format!("none in partitions {missing:?} of {}", self.load.topic))
    }

    /// Stops the clients, waits for what is in flight, then reads every partition with a fresh client from the beginning
    /// to its end.
    pub fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for producer in self.producers {
            producer
                .join()
                .map_err(|_| anyhow!("a producer panicked"))??;
        }
        for consumer in self.consumers {
            consumer
                .join()
                .map_err(|_| anyhow!("a consumer panicked"))??;
        }
        read_to_end(
            &self.bootstrap,
            &self.load.topic,
            self.load.partitions,
            &self.recorder,
        )
    }
}

struct RecordOutcome {
    recorder: Recorder,
    producer: u32,
}

impl rdkafka::ClientContext for RecordOutcome {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        // Said by rd_kafka_idemp_drain_epoch_bump() alone.
        if facility == "DRAIN" && message.contains("epoch bump") {
            self.recorder.new_epoch(self.producer, message);
        }
    }
}

impl ProducerContext for RecordOutcome {
    type DeliveryOpaque = Box<SendId>;

    fn delivery(&self, result: &DeliveryResult<'_>, id: Self::DeliveryOpaque) {
        let outcome = match result.as_ref().map(Message::offset) {
            // RD_KAFKA_OFFSET_INVALID.
            Ok(..0) => Outcome::Implied,
            Ok(offset) => Outcome::Ok(offset),
            // Never proves that nothing was written: a timeout may follow a write whose answer was lost.
            Err(_) => Outcome::Info,
        };
        self.recorder.complete(*id, outcome);
    }
}

fn recording_producer(
    bootstrap: &str,
    load: &Load,
    recorder: Recorder,
    producer: u32,
) -> Result<ThreadedProducer<RecordOutcome>> {
    let idempotent = if load.idempotent { "true" } else { "false" };
    client(bootstrap)
        .set("acks", "all")
        .set("enable.idempotence", idempotent)
        .set("compression.type", load.compression)
        .set("linger.ms", "2")
        .set("retry.backoff.ms", "20")
        .set("message.timeout.ms", "120000")
        .set(
            "socket.timeout.ms",
            load.answer_timeout.as_millis().to_string(),
        )
        // Bounds how much one fault can leave open.
        .set("queue.buffering.max.messages", "5000")
        .set("debug", "eos")
        .set_log_level(RDKafkaLogLevel::Debug)
        .create_with_context(RecordOutcome { recorder, producer })
        .context("a producer")
}

fn produce(
    client: &ThreadedProducer<RecordOutcome>,
    load: &Load,
    producer: u32,
    recorder: &Recorder,
    stop: &AtomicBool,
) -> Result<()> {
    let mut sequence = 0;
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let value = Value { producer, sequence };
        let partition = i32::try_from(sequence % u64::try_from(load.partitions)?)?;
        let (key, payload) = (producer.to_be_bytes(), value.payload(load.record_bytes));
        let id = recorder.invoke(value, partition);
        let record = BaseRecord::with_opaque_to(&load.topic, Box::new(id))
            .partition(partition)
            .key(&key[..])
            .payload(&payload);
        match client.send(record) {
            Ok(()) => {}
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                // Never handed to the client: it provably did not happen.
                recorder.complete(id, Outcome::Fail);
                std::thread::park_timeout(QUEUE_FULL_PAUSE);
            }
            Err((error, _)) => bail!("producer {producer}: {error}"),
        }
        sequence += 1;
        let due = Duration::from_secs(sequence) / load.records_per_second;
        if let Some(early) = due.checked_sub(began.elapsed()) {
            std::thread::park_timeout(early);
        }
    }
    client
        .flush(DRAIN_DEADLINE)
        .with_context(|| format!("producer {producer}: not everything was acknowledged at the end"))
}

/// A consumer of all partitions from their beginning, outside any group.
fn reader(bootstrap: &str, load: &Load) -> Result<BaseConsumer> {
    let Load {
        topic, partitions, ..
    } = load;
    let consumer: BaseConsumer = client(bootstrap)
        .set("group.id", "cluster-tests-reader")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", "50")
        .set(
            "socket.timeout.ms",
            load.answer_timeout.as_millis().to_string(),
        )
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..*partitions {
        assignment.add_partition_offset(topic, partition, Offset::Offset(0))?;
    }
    consumer.assign(&assignment)?;
    Ok(consumer)
}

fn consume(
    client: &BaseConsumer,
    assignment: u32,
    stop: &AtomicBool,
    record: impl Fn(Read),
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if let Some(read) = poll(client, assignment)? {
            record(read);
        }
    }
    Ok(())
}

fn poll(client: &BaseConsumer, assignment: u32) -> Result<Option<Read>> {
    match client.poll(POLL) {
        None => Ok(None),
        Some(Ok(message)) => Ok(Some(Read {
            assignment,
            partition: message.partition(),
            offset: message.offset(),
            value: message.payload().and_then(Value::parse),
        })),
        Some(Err(error)) if is_passing(&error) => Ok(None),
        Some(Err(error)) => Err(error).context("a consumer was refused"),
    }
}

/// Errors that a client reports while a node is away and gets over by itself.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::Resolve
                | Code::PartitionEOF
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::OffsetNotAvailable
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
        )
    )
}

/// Reads every partition with a fresh client from the beginning to the log's end.
pub fn read_to_end(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    recorder: &Recorder,
) -> Result<()> {
    let load = Load {
        partitions,
        ..Load::of(topic)
    };
    let client = reader(bootstrap, &load)?;
    let assignment = next_assignment();
    let mut open = std::collections::HashMap::new();
    for partition in 0..partitions {
        let (_, end) = client
            .fetch_watermarks(topic, partition, DRAIN_DEADLINE)
            .context("asking for the log's end")?;
        // A log that ends below what was seen has lost it: read what is there, and let the checker say what is missing.
        if end > 0 {
            open.insert(partition, end);
        }
    }
    let mut last_progress = Instant::now();
    while !open.is_empty() {
        if let Some(read) = poll(&client, assignment)? {
            last_progress = Instant::now();
            recorder.final_read(read);
            if open
                .get(&read.partition)
                .is_some_and(|&end| read.offset + 1 >= end)
            {
                open.remove(&read.partition);
            }
        } else if last_progress.elapsed() > DRAIN_DEADLINE {
            bail!("the final reading stopped before the ends {open:?} of {topic}");
        }
    }
    Ok(())
}
