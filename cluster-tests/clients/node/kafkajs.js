// kafkajs.js BOOTSTRAP [COUNT]: kafkajs, idempotent producer, consumer group, admin client.
//
// lz4 and zstd are left out: kafkajs has them only through addons that are compiled against the running Node.
import { randomUUID } from 'node:crypto'
import kafkajs from 'kafkajs'
import snappy from 'kafkajs-snappy'

const { Kafka, CompressionTypes, CompressionCodecs, logLevel } = kafkajs
CompressionCodecs[CompressionTypes.Snappy] = snappy

const [bootstrap, countText = '100000'] = process.argv.slice(2)
if (!bootstrap) throw new Error('usage: kafkajs.js BOOTSTRAP [COUNT]')
const count = Number(countText)
const partitions = 4
const deadlineMs = 120_000
const batch = 2_000

const key = (i) => `key-${i % 1000}`
const value = (i) => `record ${i} `.repeat(8)

const kafka = new Kafka({ clientId: 'cluster-tests', brokers: [bootstrap], logLevel: logLevel.NOTHING })

async function produce(topic, compression) {
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  for (let from = 0; from < count; from += batch) {
    const messages = []
    for (let i = from; i < Math.min(from + batch, count); i++) messages.push({ key: key(i), value: value(i) })
    await producer.send({ topic, compression, acks: -1, messages })
  }
  await producer.disconnect()
}

async function consume(topic) {
  const consumer = kafka.consumer({ groupId: topic })
  const seen = new Uint8Array(count)
  const lastOffset = new Map()
  const lastOfKey = new Map()
  let found = 0
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${topic}: ${found} of ${count} records came back`)), deadlineMs)
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
    const take = (partition, message) => {
      const text = message.value.toString()
      const i = Number(text.split(' ', 2)[1])
      const at = `${partition}@${message.offset}`
      if (!(i < count) || text !== value(i) || message.key.toString() !== key(i)) throw new Error(`record at ${at} came back changed`)
      if (Number(message.offset) <= (lastOffset.get(partition) ?? -1)) throw new Error(`${at} came out of order`)
      if (i <= (lastOfKey.get(key(i)) ?? -1)) throw new Error(`record ${i} came after a later one of its key`)
      if (seen[i]) throw new Error(`record ${i} came twice`)
      seen[i] = 1
      lastOffset.set(partition, Number(message.offset))
      lastOfKey.set(key(i), i)
      if (++found === count) {
        clearTimeout(timer)
        resolve()
      }
    }
    const eachBatch = async ({ batch: { partition, messages }, resolveOffset, heartbeat }) => {
      try {
        for (const message of messages) {
          take(partition, message)
          resolveOffset(message.offset)
        }
        await heartbeat()
      } catch (error) {
        reject(error)
      }
    }
    consumer.run({ eachBatch }).catch(reject)
  })
  await consumer.disconnect()
}

const admin = kafka.admin()
await admin.connect()
for (const [name, compression] of [
  ['none', CompressionTypes.None],
  ['gzip', CompressionTypes.GZIP],
  ['snappy', CompressionTypes.Snappy],
]) {
  const topic = `kafkajs-${name}-${randomUUID().slice(0, 8)}`
  await admin.createTopics({ topics: [{ topic, numPartitions: partitions, replicationFactor: -1 }], waitForLeaders: true })
  await produce(topic, compression)
  await consume(topic)
  const ends = await admin.fetchTopicOffsets(topic)
  const total = ends.reduce((sum, { high }) => sum + Number(high), 0)
  if (total !== count) throw new Error(`${topic} holds ${total} records`)
  const described = await admin.describeGroups([topic])
  if (described.groups[0].state !== 'Empty') throw new Error(`the group is ${described.groups[0].state}, not Empty`)
  await admin.deleteGroups([topic])
  await admin.deleteTopics({ topics: [topic] })
  console.log(`kafkajs: ${count} records, ${name}`)
}
await admin.disconnect()
