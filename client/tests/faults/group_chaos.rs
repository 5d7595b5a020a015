//! Many faults at once for a group, from a seed: members crash, expire, come and go while coordinators and leaders
//! move. Everything is done in the end; a record is done again only where a member was lost in between.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use busbar_client::{
    Client, DeadLetter, GroupConsumer, Reason,
    env::{Entropy, SeededEntropy},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    fake::{Cluster, SubscribeFault},
    soon,
};

const PARTITIONS: u32 = 4;
const STEPS: usize = 40;
const GROUP: &str = "g";

/// Times that each record was acknowledged.
type Acks = Arc<Mutex<BTreeMap<(u32, u64), usize>>>;

struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Worker {
    async fn start(client: &Client, acks: &Acks, seed: u64) -> Self {
        let short = Duration::from_millis(5);
        let builder = client.group(GROUP).topics(["t"]).commit_interval(short).dead_letter(DeadLetter::Off);
        let builder = builder.backoff(short, short).max_deliveries(0).window_records(50);
        let consumer = soon("join", builder.build()).await.expect("a member");
        let (stop, told) = watch::channel(false);
        Self { stop, task: tokio::spawn(work(consumer, acks.clone(), told, SeededEntropy::new(seed))) }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        soon("end", self.task).await.expect("no panic");
    }
}

async fn work(mut consumer: GroupConsumer, acks: Acks, mut told: watch::Receiver<bool>, random: SeededEntropy) {
    let mut kept = Vec::new();
    loop {
        let record = tokio::select! {
            record = consumer.next() => record.expect("no fault").expect("not closed"),
            () = tokio::time::sleep(Duration::from_millis(20)), if !kept.is_empty() => {
                kept.drain(..).for_each(|record| acknowledge(record, &acks));
                continue;
            }
            _ = told.wait_for(|stop| *stop) => break,
        };
        match random.next_u64() % 20 {
            0 => drop(record),
            1 => drop(record.nack(Duration::from_millis(1))),
            2 => kept.push(record),
            _ => acknowledge(record, &acks),
        }
        if kept.len() > 5 {
            kept.drain(..).for_each(|record| acknowledge(record, &acks));
        }
    }
    kept.drain(..).for_each(|record| acknowledge(record, &acks));
    consumer.close().await.expect("committed");
}

fn acknowledge(record: busbar_client::Received, acks: &Acks) {
    let place = (record.partition(), record.offset());
    if record.ack().is_ok() {
        *acks.lock().expect("no panic").entry(place).or_default() += 1;
    }
}

fn expel_all(cluster: &Cluster) {
    cluster.edit_all(|state| {
        let members: Vec<_> = state.group(GROUP).members.keys().copied().collect();
        state.expel(GROUP, &members);
    });
}

async fn run(seed: u64) {
    let (cluster, client) = Cluster::with_topic(PARTITIONS).await;
    let (random, acks) = (SeededEntropy::new(seed), Acks::default());
    let mut workers = Vec::new();
    for number in 0..3 {
        workers.push(Worker::start(&client, &acks, seed * 100 + number).await);
    }
    let mut losses = 0;
    for step in 0..STEPS {
        (0..PARTITIONS).for_each(|partition| cluster.fill(partition, 2, 10));
        let (choice, which) = (random.next_u64() % 8, random.next_u64());
        match choice {
            0 => {
                losses += 1;
                workers.swap_remove(which as usize % 3).task.abort();
                expel_all(&cluster);
                workers.push(Worker::start(&client, &acks, which).await);
            }
            1 => {
                losses += 1;
                expel_all(&cluster);
            }
            2 => {
                workers.swap_remove(which as usize % 3).end().await;
                workers.push(Worker::start(&client, &acks, which).await);
            }
            3 => cluster.edit_all(|state| state.coordinator.node = which % 2 + 1),
            4 => cluster.edit_all(|state| state.coordinator.sick = Some(Reason::NoLeader)),
            5 => cluster.lead(which as u32 % PARTITIONS, which % 2 + 1),
            6 => {
                let faults = [SubscribeFault::Disconnect, SubscribeFault::Corrupt, SubscribeFault::Twice];
                let fault = faults[which as usize % faults.len()];
                cluster.edit(which as u32 % PARTITIONS, |partition| partition.subscribe_faults.push_back(fault));
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(which % 15)).await;
        cluster.edit_all(|state| state.coordinator.sick = None);
        if step % 10 == 9 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let all = STEPS * PARTITIONS as usize * 20;
    soon(&format!("seed {seed}: everything"), async {
        while acks.lock().expect("no panic").len() < all {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    for worker in workers {
        worker.end().await;
    }
    let most = acks.lock().expect("no panic").values().copied().max();
    assert!(most <= Some(1 + losses), "seed {seed}: {most:?} times, with {losses} losses");
    let again = acks.lock().expect("no panic").values().filter(|times| **times > 1).count();
    assert!(losses > 0 || again == 0, "seed {seed}");
    for partition in 0..PARTITIONS {
        let committed = cluster.edit_all(|state| state.group(GROUP).committed[&("t".to_owned(), partition)].offset);
        assert_eq!(committed, STEPS as u64 * 20, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_survives_many_faults_at_once() {
    for seed in 0..4 {
        run(seed).await;
    }
}
