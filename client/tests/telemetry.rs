//! What OpenTelemetry sees of the client: spans of sending and processing that belong together, and metrics. One test,
//! as providers are the whole process'.

#[allow(dead_code, unused_imports)]
#[path = "faults/fake/mod.rs"]
mod fake;

use std::{future::Future, time::Duration};

use busbar_client::{Client, Consumer, DeadLetter, Producer, Reason, Record, TrySendError};
use opentelemetry::{
    KeyValue, Value, global,
    propagation::TextMapCompositePropagator,
    trace::{SpanKind, Status, TracerProvider},
};
use opentelemetry_sdk::{
    metrics::{
        InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
        data::{AggregatedMetrics, MetricData},
    },
    propagation::{BaggagePropagator, TraceContextPropagator},
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

use crate::fake::{Cluster, PublishFault};

async fn soon<T>(what: &str, doing: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), doing).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not done within 20 s"),
    }
}

struct Telemetry {
    spans: InMemorySpanExporter,
    tracer: SdkTracerProvider,
    metrics: InMemoryMetricExporter,
    meter: SdkMeterProvider,
}

impl Telemetry {
    fn install() -> Self {
        let (spans, metrics) = (InMemorySpanExporter::default(), InMemoryMetricExporter::default());
        let tracer = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        let meter = SdkMeterProvider::builder().with_reader(PeriodicReader::builder(metrics.clone()).build()).build();
        let propagators: [Box<dyn opentelemetry::propagation::TextMapPropagator + Send + Sync>; 2] =
            [Box::new(TraceContextPropagator::new()), Box::new(BaggagePropagator::new())];
        global::set_text_map_propagator(TextMapCompositePropagator::new(propagators.into()));
        global::set_meter_provider(meter.clone());
        let layer = tracing_opentelemetry::layer().with_tracer(tracer.tracer("test"));
        let filter = tracing_subscriber::filter::LevelFilter::INFO;
        let subscriber = tracing_subscriber::registry().with(filter).with(layer);
        tracing::subscriber::set_global_default(subscriber).expect("the first subscriber");
        Self { spans, tracer, metrics, meter }
    }

    fn find(&self, name: &str) -> SpanData {
        self.tracer.force_flush().expect("flushed");
        let found = self.spans.get_finished_spans().expect("spans");
        let mut found: Vec<_> = found.into_iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name}: {found:#?}");
        found.remove(0)
    }

    /// The only one of that name since the last such question.
    fn span(&self, name: &str) -> SpanData {
        let found = self.find(name);
        self.spans.reset();
        found
    }

    /// Sum or count of a metric with this label.
    fn total(&self, name: &str, label: (&str, &str)) -> u64 {
        self.meter.force_flush().expect("flushed");
        let wanted = KeyValue::new(label.0.to_owned(), label.1.to_owned());
        let all = self.metrics.get_finished_metrics().expect("metrics");
        let last = all.last().expect("collected");
        let metrics = last.scope_metrics().flat_map(|scope| scope.metrics()).filter(|metric| metric.name() == name);
        let mut total = 0;
        for metric in metrics {
            match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                    let points = sum.data_points().filter(|point| point.attributes().any(|label| *label == wanted));
                    total += points.map(|point| point.value()).sum::<u64>();
                }
                AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                    let points = histogram.data_points();
                    let points = points.filter(|point| point.attributes().any(|label| *label == wanted));
                    total += points.map(|point| point.count()).sum::<u64>();
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        total
    }
}

fn attribute(span: &SpanData, name: &str) -> Option<Value> {
    span.attributes.iter().find(|attribute| attribute.key.as_str() == name).map(|attribute| attribute.value.clone())
}

fn text(span: &SpanData, name: &str) -> String {
    attribute(span, name).map(|value| value.as_str().into_owned()).unwrap_or_default()
}

/// Sent within a request, read and processed elsewhere.
async fn sending_and_processing(telemetry: &Telemetry, producer: &Producer, consumer: &mut Consumer) {
    let send = async { producer.send(Record::new("paid").header("own", "1")).await.expect("taken").await };
    soon("stored", send.instrument(tracing::info_span!("request"))).await.expect("stored");
    let record = soon("next", consumer.next()).await.expect("readable").expect("not closed");
    let names: Vec<_> = record.headers().map(|(name, _)| name).collect();
    assert_eq!(names, ["own", "traceparent", "tracestate"]);
    let request = telemetry.find("request");
    let received = telemetry.find("receive t");
    let sent = telemetry.span("send t");
    assert_eq!((sent.span_kind.clone(), sent.parent_span_id), (SpanKind::Producer, request.span_context.span_id()));
    for (name, value) in [
        ("messaging.system", "busbar"),
        ("messaging.operation.name", "send"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", "t"),
        ("messaging.destination.partition.id", "0"),
        ("messaging.message.body.size", "4"),
        ("messaging.busbar.offset", "0"),
        ("messaging.busbar.batch.message_count", "1"),
    ] {
        assert_eq!(text(&sent, name), value, "{name}: {:?}", sent.attributes);
    }
    assert_eq!(received.span_kind, SpanKind::Client);
    assert_eq!(received.links.links[0].span_context.span_id(), sent.span_context.span_id());
    assert_eq!(text(&received, "messaging.operation.type"), "receive");
    assert_eq!(text(&received, "messaging.batch.message_count"), "1");
    let parent = record.traceparent().expect("a context");
    assert_eq!(parent.trace_id(), sent.span_context.trace_id().to_bytes());
    assert_eq!(parent.parent_id(), sent.span_context.span_id().to_bytes());
    let sent = sent.span_context.span_id();

    // Without a current span: a child of the sending, and linked to it.
    record.process(async { Ok::<_, String>(()) }).await.expect("processed");
    let processed = telemetry.span("process t");
    assert_eq!((processed.span_kind.clone(), processed.parent_span_id), (SpanKind::Consumer, sent));
    assert_eq!(processed.links.links[0].span_context.span_id(), sent);
    assert_eq!(text(&processed, "messaging.operation.type"), "process");
    assert_eq!(text(&processed, "messaging.busbar.offset"), "0");

    // Within a span: its child, and only linked to the sending. It fails.
    let work = tracing::info_span!("work");
    let failing = record.process(async { Err::<(), _>("no money".to_owned()) }).instrument(work.clone());
    failing.await.expect_err("it fails");
    let failed = telemetry.span("process t");
    assert_ne!(failed.parent_span_id, sent);
    assert_eq!(failed.links.links[0].span_context.span_id(), sent);
    assert_eq!(failed.status, Status::error("no money"));
    assert!(text(&failed, "error.type").ends_with("String"), "{:?}", failed.attributes);
}

/// A context of the application's own is kept, and linked.
async fn own_context(telemetry: &Telemetry, producer: &Producer, consumer: &mut Consumer) {
    let created = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let own = Record::new("x").trace_context(created, "");
    soon("stored", producer.send(own).await.expect("taken")).await.expect("stored");
    let record = soon("next", consumer.next()).await.expect("readable").expect("not closed");
    assert_eq!(record.traceparent().map(|parent| parent.to_string()).as_deref(), Some(created));
    let linked = telemetry.span("send t");
    assert_eq!(linked.links.links[0].span_context.span_id().to_string(), "00f067aa0ba902b7");
    assert_eq!(linked.span_kind, SpanKind::Client, "it is not the creation");

    // Created long before it is sent.
    let kept = Record::new("x").created_for("t");
    assert_eq!(kept.clone().created_for("t"), kept, "once");
    let created = telemetry.span("create t");
    assert_eq!(
        (created.span_kind.clone(), text(&created, "messaging.operation.type")),
        (SpanKind::Producer, "create".into())
    );
    soon("stored", producer.send(kept).await.expect("taken")).await.expect("stored");
    let record = soon("next", consumer.next()).await.expect("readable").expect("not closed");
    let parent = record.traceparent().expect("a context").parent_id();
    assert_eq!(parent, created.span_context.span_id().to_bytes());
    let sent = telemetry.span("send t");
    assert_eq!(
        (sent.span_kind, sent.links.links[0].span_context.span_id()),
        (SpanKind::Client, created.span_context.span_id())
    );
}

/// A failure ends the span with its reason; a full buffer gives the record back as it was.
async fn failures(telemetry: &Telemetry, cluster: &Cluster, client: &Client, producer: &Producer) {
    cluster.edit(0, |partition| partition.publish_faults.push_back(PublishFault::Refuse(Reason::InvalidArgument)));
    soon("told", producer.send("bad").await.expect("taken")).await.expect_err("refused");
    let refused = telemetry.span("send t");
    assert_eq!(text(&refused, "error.type"), "INVALID_ARGUMENT");
    assert!(matches!(refused.status, Status::Error { .. }), "{:?}", refused.status);
    cluster.edit_all(|state| state.held = true);
    let small = client.producer("t").buffer_bytes(64 << 10).build().await.expect("a producer");
    let _waits = small.try_send(vec![0; 60 << 10]).expect("room");
    let back = small.try_send(Record::new(vec![0; 10 << 10])).expect_err("no room");
    let TrySendError::Full(back) = back else { panic!("{back:?}") };
    assert!(back.headers.is_empty(), "{:?}", back.headers);
    assert_eq!(text(&telemetry.span("send t"), "error.type"), "full");
    cluster.edit_all(|state| state.held = false);
    soon("close", small.close()).await.expect("stored");
    telemetry.span("send t");
}

/// A word on a record of a group is a span of its own, linked to the sending.
async fn settling(telemetry: &Telemetry, cluster: &Cluster, client: &Client) {
    cluster.create("g", 1);
    let producer = client.producer("g").build().await.expect("a producer");
    let builder = client.group("billing").topics(["g"]).dead_letter(DeadLetter::Off);
    let mut consumer = soon("joined", builder.build()).await.expect("a member");
    for operation in ["ack", "nack", "reject"] {
        soon("stored", producer.send("x").await.expect("taken")).await.expect("stored");
        let received = soon("next", consumer.next()).await.expect("readable").expect("not closed");
        match operation {
            "ack" => received.ack(),
            "nack" => received.nack(Duration::from_secs(60)),
            _ => received.reject("no use"),
        }
        .expect("in time");
        let (sent, read) = (telemetry.find("send g"), telemetry.find("receive g"));
        let settled = telemetry.span(&format!("{operation} g"));
        assert_eq!(read.links.links[0].span_context.span_id(), sent.span_context.span_id());
        assert_eq!(text(&read, "messaging.consumer.group.name"), "billing");
        assert_eq!((settled.span_kind.clone(), settled.status.clone()), (SpanKind::Client, Status::Unset));
        assert_eq!(settled.links.links[0].span_context.span_id(), sent.span_context.span_id());
        for (name, value) in [
            ("messaging.operation.name", operation),
            ("messaging.operation.type", "settle"),
            ("messaging.consumer.group.name", "billing"),
            ("messaging.destination.partition.id", "0"),
        ] {
            assert_eq!(text(&settled, name), value, "{name}: {:?}", settled.attributes);
        }
    }
    soon("committed", consumer.commit()).await.expect("committed");
    assert_eq!(text(&telemetry.span("commit g"), "messaging.operation.type"), "settle");
    soon("closed", consumer.close()).await.expect("left");
    assert_eq!(telemetry.total("messaging.client.consumed.messages", ("messaging.destination.name", "g")), 3);
}

/// The reply is sent within the processing of its request, in the requester's trace.
async fn request_and_reply(telemetry: &Telemetry, client: &Client) {
    let requester = client.requester("t").build().await.expect("a requester");
    let mut responder = client.responder("t").build().await.expect("a responder");
    let serving = responder.serve(1, async |_| Ok::<_, String>(Record::new("done")));
    let asking = async {
        let ask = requester.request("do", Duration::from_secs(15)).instrument(tracing::info_span!("ask"));
        soon("a reply", ask).await.expect("a reply")
    };
    let reply = tokio::select! { reply = asking => reply, ended = serving => panic!("{ended:?}") };
    let (asked, processed, replied) =
        (telemetry.find("send t"), telemetry.find("process t"), telemetry.span("send t.replies"));
    assert_eq!(processed.parent_span_id, asked.span_context.span_id());
    assert_eq!(replied.parent_span_id, processed.span_context.span_id());
    assert_eq!(reply.traceparent().map(|parent| parent.trace_id()), Some(asked.span_context.trace_id().to_bytes()));
}

#[tokio::test]
async fn spans_belong_together_and_metrics_count() {
    let telemetry = Telemetry::install();
    let (cluster, client) = Cluster::with_topic(1).await;
    let producer = client.producer("t").build().await.expect("a producer");
    let mut consumer = client.consumer("t").build().await.expect("a consumer");
    sending_and_processing(&telemetry, &producer, &mut consumer).await;
    own_context(&telemetry, &producer, &mut consumer).await;
    failures(&telemetry, &cluster, &client, &producer).await;
    settling(&telemetry, &cluster, &client).await;
    request_and_reply(&telemetry, &client).await;
    let topic = ("messaging.destination.name", "t");
    assert_eq!(telemetry.total("messaging.client.sent.messages", topic), 6);
    assert_eq!(telemetry.total("messaging.client.operation.duration", topic), 6);
    assert_eq!(telemetry.total("messaging.client.operation.duration", ("error.type", "INVALID_ARGUMENT")), 1);
    assert_eq!(telemetry.total("messaging.process.duration", topic), 3);
    assert!(telemetry.total("messaging.client.consumed.messages", topic) >= 2);
}
