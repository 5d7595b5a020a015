//! Many faults at once, from a seed: what is acknowledged is stored once and in order, and is read once and in
//! order. A failing seed replays the same script (not the same timing).

use std::time::Duration;

use busbar_client::{
    Delivery, Reason, StartAt,
    env::{Entropy, SeededEntropy},
};

use crate::{
    fake::{Cluster, PublishFault, SubscribeFault, record},
    soon,
};

const PARTITIONS: u32 = 3;
const RECORDS: usize = 6000;

fn publish_fault(random: u64) -> PublishFault {
    let stored = random & (1 << 40) != 0;
    match random % 60 {
        0 => PublishFault::NotLeader,
        1 => PublishFault::NotLeaderNoHint,
        2 => PublishFault::Unknown { stored },
        3 => PublishFault::Drop { stored },
        4 => PublishFault::Refuse(Reason::Overloaded),
        5 => PublishFault::Disconnect { stored },
        6 => PublishFault::Slow(Duration::from_millis(3)),
        7 => PublishFault::Hang { stored },
        _ => PublishFault::None,
    }
}

fn subscribe_fault(random: u64) -> SubscribeFault {
    match random % 60 {
        0 => SubscribeFault::NotLeader,
        1 => SubscribeFault::Drop,
        2 => SubscribeFault::Corrupt,
        3 => SubscribeFault::Gap,
        4 => SubscribeFault::Twice,
        5 => SubscribeFault::End(Reason::NoLeader),
        6 => SubscribeFault::Disconnect,
        _ => SubscribeFault::None,
    }
}

async fn run(seed: u64) {
    let (cluster, client) = Cluster::with_topic(PARTITIONS).await;
    let random = SeededEntropy::new(seed);
    for partition in 0..PARTITIONS {
        cluster.edit(partition, |partition| {
            partition.publish_faults = (0..300).map(|_| publish_fault(random.next_u64())).collect();
            partition.subscribe_faults = (0..300).map(|_| subscribe_fault(random.next_u64())).collect();
        });
    }
    let mut consumer = client.consumer("t").from(StartAt::Earliest).build().await.expect("a consumer");
    let builder = client.producer("t").batch_bytes(1024).answer_timeout(Duration::from_millis(150));
    let producer = builder.buffer_bytes(64 << 10).build().await.expect("a producer");

    let publish = async {
        let mut deliveries: Vec<Delivery> = Vec::new();
        for number in 0..RECORDS {
            let record = record(number).partition(number as u32 % PARTITIONS);
            deliveries.push(producer.send(record).await.expect("taken"));
        }
        for delivery in deliveries {
            delivery.await.expect("every fault is survived within the delivery timeout");
        }
    };
    let consume = async {
        let mut read = vec![Vec::new(); PARTITIONS as usize];
        while read.iter().map(Vec::len).sum::<usize>() < RECORDS {
            match consumer.next().await {
                Ok(record) => {
                    let record = record.expect("not closed");
                    let of_partition: &mut Vec<String> = &mut read[record.partition() as usize];
                    assert_eq!(record.offset(), of_partition.len() as u64, "seed {seed}");
                    of_partition.push(String::from_utf8(record.value().to_vec()).expect("text"));
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        read
    };
    let ((), read) = soon(&format!("seed {seed}"), async { tokio::join!(publish, consume) }).await;
    for partition in 0..PARTITIONS {
        let want: Vec<_> = (0..RECORDS).filter(|number| *number as u32 % PARTITIONS == partition).collect();
        let want: Vec<_> = want.into_iter().map(|number| number.to_string()).collect();
        assert_eq!(cluster.values(partition), want, "seed {seed}: stored");
        assert_eq!(read[partition as usize], want, "seed {seed}: read");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_faults_at_once() {
    for seed in 0..6 {
        run(seed).await;
    }
}
