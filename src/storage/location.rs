//! Where an object is: a store and a path in it, and how a person writes that. Names are taken as they
//! are, so that `a%20b#[1].jsonl` is the file of that name; nothing here asks whether it exists.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::{Path as ObjectPath, PathPart};

use super::{StorageError, profile};

const LOCAL: &str = "file://";
const MEMORY: &str = "memory://";

/// The place of an object or folder in its store.
#[derive(Clone)]
pub struct Location {
    store: Arc<Store>,
    path: ObjectPath,
    shown: String,
}

/// One opened store.
pub(super) struct Store {
    root: String,
    objects: Arc<dyn ObjectStore>,
}

/// A path or URL taken apart.
pub(super) struct Place {
    /// What the store is opened by.
    pub(super) root: String,
    /// The path in it.
    pub(super) path: ObjectPath,
    /// How a person knows it.
    pub(super) shown: String,
}

impl Store {
    /// The store behind `memory://`, with its root.
    pub(super) fn memory(objects: Arc<dyn ObjectStore>) -> (String, Arc<Self>) {
        (MEMORY.to_owned(), Arc::new(Self { root: MEMORY.to_owned(), objects }))
    }

    /// Opens the store of a root; remote ones take their settings from the environment variables of
    /// their provider: `AWS_*`, `GOOGLE_*`, `AZURE_*`.
    pub(super) fn open(root: &str) -> Result<Self, StorageError> {
        let objects: Arc<dyn ObjectStore> = match root {
            LOCAL => Arc::new(LocalFileSystem::new().with_fsync(true)),
            MEMORY => Arc::new(InMemory::new()),
            bucket => open_bucket(bucket).map_err(|cause| StorageError::Place {
                text: bucket.to_owned(),
                cause: cause.to_string(),
            })?,
        };
        Ok(Self { root: root.to_owned(), objects })
    }
}

fn open_bucket(url: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    Ok(match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("gs") => Arc::new(GoogleCloudStorageBuilder::from_env().with_url(url).build()?),
        Some("az") => Arc::new(MicrosoftAzureBuilder::from_env().with_url(url).build()?),
        _ => {
            let builder = AmazonS3Builder::from_env().with_url(url);
            Arc::new(profile::apply(builder, |name| std::env::var(name).ok()).build()?)
        }
    })
}

impl Location {
    pub(super) fn new(store: Arc<Store>, path: ObjectPath, shown: String) -> Self {
        Self { store, path, shown }
    }

    /// Names an object or folder below this one; `..` and control characters lose their meaning.
    pub fn child(&self, relative: &str) -> Location {
        let mut path = self.path.clone();
        for segment in relative.split('/').filter(|segment| !segment.is_empty() && *segment != ".")
        {
            path = path.join(PathPart::parse(segment).unwrap_or_else(|_| PathPart::from(segment)));
        }
        self.below(path)
    }

    /// The absolute URL, the same for all spellings of one place; without user info or query.
    pub fn url(&self) -> String {
        match self.store.root.as_str() {
            LOCAL => format!("{LOCAL}/{}", self.path),
            MEMORY => format!("{MEMORY}{}", self.path),
            bucket => format!("{bucket}/{}", self.path),
        }
    }

    /// The last part of the path.
    pub fn file_name(&self) -> &str {
        self.path.filename().unwrap_or_default()
    }

    /// The path on the local disk, if that is where it is.
    pub fn local_path(&self) -> Option<PathBuf> {
        (self.store.root == LOCAL).then(|| PathBuf::from(format!("/{}", self.path)))
    }

    /// The bucket's URL, if it is in one.
    pub(super) fn bucket(&self) -> Option<&str> {
        let root = self.store.root.as_str();
        (root != LOCAL && root != MEMORY).then_some(root)
    }

    pub(super) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.store.objects
    }

    pub(super) fn path(&self) -> &ObjectPath {
        &self.path
    }

    /// A path of the same store that lies below this one.
    pub(super) fn below(&self, path: ObjectPath) -> Location {
        let relative = path.as_ref().strip_prefix(self.path.as_ref()).unwrap_or(path.as_ref());
        let relative = relative.trim_start_matches('/');
        let shown = match self.shown.as_str() {
            shown if relative.is_empty() => shown.to_owned(),
            "." => relative.to_owned(),
            folder if folder.ends_with('/') => format!("{folder}{relative}"),
            folder => format!("{folder}/{relative}"),
        };
        Location { store: self.store.clone(), path, shown }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({})", self.url())
    }
}

/// Takes a path or URL apart.
pub(super) fn parse(text: &str, base: &Path) -> Result<Place, StorageError> {
    match text.split_once("://") {
        Some(("memory", path)) => {
            let path = object_path(text, path.trim_start_matches('/'))?;
            Ok(Place { root: MEMORY.into(), shown: format!("{MEMORY}{path}"), path })
        }
        Some(("file", path)) => parse_file_url(text, path),
        Some(("s3" | "s3a", rest)) => parse_bucket_url(text, "s3", rest),
        Some(("gs", rest)) => parse_bucket_url(text, "gs", rest),
        Some(("az", rest)) => parse_bucket_url(text, "az", rest),
        Some((scheme, _)) if is_scheme(scheme) => {
            Err(StorageError::Scheme { scheme: scheme.to_owned() })
        }
        _ => parse_path(text, base),
    }
}

fn is_scheme(text: &str) -> bool {
    text.len() > 1 && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn parse_file_url(text: &str, rest: &str) -> Result<Place, StorageError> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        let cause = "a file URL has three slashes: file:///folder/file".to_owned();
        return Err(StorageError::Place { text: text.to_owned(), cause });
    }
    let path = ObjectPath::from_url_path(path)
        .map_err(|cause| StorageError::Place { text: text.to_owned(), cause: cause.to_string() })?;
    Ok(Place { root: LOCAL.into(), shown: format!("/{path}"), path })
}

/// Keys are not percent-decoded, as in the tools of S3: `s3://bucket/a?b%20c` is the key `a?b%20c`.
fn parse_bucket_url(text: &str, scheme: &str, rest: &str) -> Result<Place, StorageError> {
    let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
    let bucket = authority.rsplit('@').next().unwrap_or(authority);
    if bucket.is_empty() {
        let cause = "there is no bucket name".to_owned();
        return Err(StorageError::Place { text: text.to_owned(), cause });
    }
    let root = format!("{scheme}://{bucket}");
    let path = object_path(&format!("{root}/{key}"), key)?;
    Ok(Place { shown: format!("{root}/{path}"), root, path })
}

fn parse_path(text: &str, base: &Path) -> Result<Place, StorageError> {
    let wrong = |cause: String| StorageError::Place { text: text.to_owned(), cause };
    if text.is_empty() {
        return Err(wrong("the path is empty".to_owned()));
    }
    let joined = base.join(text);
    let absolute = std::path::absolute(&joined).map_err(|cause| wrong(cause.to_string()))?;
    let resolved = resolve_parents(&absolute);
    let resolved = resolved.to_str().ok_or_else(|| wrong("the path is not UTF-8".to_owned()))?;
    let path = object_path(text, resolved)?;
    Ok(Place { root: LOCAL.into(), path, shown: tidy(&joined) })
}

fn object_path(text: &str, path: &str) -> Result<ObjectPath, StorageError> {
    ObjectPath::parse(path)
        .map_err(|cause| StorageError::Place { text: text.to_owned(), cause: cause.to_string() })
}

/// Follows each `..` as the file system does: the parent of a linked folder is the parent of its target.
fn resolve_parents(absolute: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => {
                resolved = resolved.canonicalize().unwrap_or(resolved);
                resolved.pop();
            }
            component => resolved.push(component),
        }
    }
    resolved
}

/// The path without `.` and inner `..`, for people.
fn tidy(path: &Path) -> String {
    let mut parts: Vec<Component> = Vec::new();
    for component in path.components() {
        match (component, parts.last()) {
            (Component::CurDir, _) | (Component::ParentDir, Some(Component::RootDir)) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => drop(parts.pop()),
            (component, _) => parts.push(component),
        }
    }
    if parts.is_empty() {
        ".".to_owned()
    } else {
        parts.iter().collect::<PathBuf>().display().to_string()
    }
}
