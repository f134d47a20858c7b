//! A store that fails at its n-th operation, for every n and in every way: the same command, run again,
//! ends with the same bytes.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Formatter};
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use nightshift::job::{Job, Overrides};
use nightshift::output::content_checksum;
use nightshift::pipeline::{self, RunChoice, Stop, progress::Progress};
use nightshift::storage::Storage;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::job::{chat_rows, model};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing is done, and an error is told.
    Fails,
    /// A put leaves half of its bytes under a staging name, and an error is told.
    Torn,
    /// It is done, and an error is told.
    Lost,
    /// A put is done only after the run is over, and an error is told.
    Late,
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<InMemory>,
    fault: Fault,
    /// Operations until it strikes; it strikes once.
    left: AtomicI64,
    operations: Arc<AtomicU64>,
    late: Arc<Mutex<Vec<(ObjectPath, PutPayload, PutOptions)>>>,
}

impl Display for Faulty {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "faulty")
    }
}

fn struck() -> Error {
    Error::Generic { store: "faulty", source: "the store failed on purpose".into() }
}

impl Faulty {
    /// Whether this operation is the one that goes wrong.
    fn strikes(&self) -> bool {
        self.operations.fetch_add(1, SeqCst);
        self.left.fetch_sub(1, SeqCst) == 0
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        if !self.strikes() {
            return self.inner.put_opts(location, payload, opts).await;
        }
        match self.fault {
            Fault::Fails => {}
            Fault::Torn => {
                let whole = Bytes::from(payload);
                let half = whole.slice(..whole.len() / 2);
                let staging = ObjectPath::from(format!("{location}.staging"));
                self.inner.put(&staging, half.into()).await?;
            }
            Fault::Lost => drop(self.inner.put_opts(location, payload, opts).await?),
            Fault::Late => {
                let put = (location.clone(), payload, opts);
                self.late.lock().unwrap().push(put);
            }
        }
        Err(struck())
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        if self.strikes() { Err(struck()) } else { self.inner.get_opts(location, options).await }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        if self.strikes() {
            return Box::pin(futures::stream::once(async { Err(struck()) }));
        }
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.strikes() {
            return Box::pin(futures::stream::once(async { Err(struck()) }));
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        if self.strikes() { Err(struck()) } else { self.inner.list_with_delimiter(prefix).await }
    }

    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn job(folder: &Path) -> Job {
    std::fs::write(folder.join("rows.jsonl"), chat_rows(24)).unwrap();
    let text = format!(
        "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nmessages = 'messages'\n[sampling]\nmax_tokens = 12\ntemperature = 0.9\n[run]\njournal_seconds = 0.000001\n[output]\npath = 'memory:///out'\nrows_per_part = 9\n",
        model("a_v2like")
    );
    Job::parse(&text, "job".into(), folder, &Overrides::default()).unwrap()
}

fn run(job: &Job, store: Arc<dyn ObjectStore>) -> bool {
    let storage = Storage::with_memory(store).unwrap();
    let (progress, stop) = (Progress::default(), Stop::default());
    pipeline::run(&storage, job, RunChoice::default(), &progress, &stop)
        .is_ok_and(|report| report.complete)
}

/// The parts of an output by name, by their content.
fn parts(store: &Arc<InMemory>) -> BTreeMap<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let folder = ObjectPath::from("out/parts");
        let listed: Vec<_> = store.list(Some(&folder)).try_collect().await.unwrap();
        let mut parts = BTreeMap::new();
        for meta in listed.into_iter().filter(|meta| meta.location.as_ref().ends_with(".parquet")) {
            let bytes = store.get(&meta.location).await.unwrap().bytes().await.unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
            let batches = reader.collect::<std::result::Result<Vec<_>, _>>().unwrap();
            parts.insert(meta.location.to_string(), content_checksum(&batches[0]));
        }
        parts
    })
}

#[test]
fn whatever_operation_fails_however_the_same_command_ends_with_the_same_bytes() {
    let folder = tempfile::TempDir::new().unwrap();
    let job = job(folder.path());
    let clean = Arc::new(InMemory::new());
    assert!(run(&job, clean.clone()));
    let expected = parts(&clean);
    assert_eq!(expected.len(), 3);
    let (mut histories, mut stopped) = (0, 0);
    for fault in [Fault::Fails, Fault::Torn, Fault::Lost, Fault::Late] {
        for n in 0.. {
            let inner = Arc::new(InMemory::new());
            let (operations, late) = (Arc::new(AtomicU64::new(0)), Arc::default());
            let faulty = Faulty {
                inner: inner.clone(),
                fault,
                left: AtomicI64::new(n),
                operations: operations.clone(),
                late: Arc::clone(&late),
            };
            stopped += u64::from(!run(&job, Arc::new(faulty)));
            if operations.load(SeqCst) <= n as u64 {
                break;
            }
            histories += 1;
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for (location, payload, options) in late.lock().unwrap().drain(..) {
                // It may come too late to create anything.
                let _ = runtime.block_on(inner.put_opts(&location, payload, options));
            }
            assert!(run(&job, inner.clone()), "{fault:?} at operation {n}: the next run");
            assert_eq!(parts(&inner), expected, "{fault:?} at operation {n}");
        }
    }
    eprintln!("{histories} histories, {stopped} of them stopped their run: all ended equal");
    assert!(histories > 60 && stopped > 20, "{histories} histories, {stopped} stopped runs");
}
