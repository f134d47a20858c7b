//! A model that lies in a bucket, brought to the local disk once: each file is checked, an interrupted
//! download goes on where it stopped, and a model that changed is fetched anew.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RunError;
use super::progress::{Phase, Progress};
use crate::storage::{Entry, Location, Storage};

/// Bytes that are read, hashed and written at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Beside the model's files: what was fetched.
const MANIFEST: &str = "nightshift-fetched.json";

/// A fetched file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Fetched {
    size: u64,
    etag: Option<String>,
    sha256: String,
}

type Manifest = BTreeMap<String, Fetched>;

/// The local folder of a model: its own, or the cache's copy of one in a bucket.
pub(super) fn model_folder(
    storage: &Storage,
    path: &str,
    base: &Path,
    progress: &Progress,
) -> Result<PathBuf, RunError> {
    if !path.contains("://") {
        return Ok(base.join(path));
    }
    let remote = storage.locate(path, base)?;
    match remote.local_path() {
        Some(local) => Ok(local),
        None => fetch(storage, &remote, &cache_folder(&remote.url()), progress),
    }
}

/// `$NIGHTSHIFT_CACHE`, else `$XDG_CACHE_HOME/nightshift`, else `~/.cache/nightshift`.
fn cache_folder(url: &str) -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let root = variable("NIGHTSHIFT_CACHE").map(PathBuf::from);
    let shared = || variable("XDG_CACHE_HOME").map(|folder| Path::new(&folder).join("nightshift"));
    let home = || variable("HOME").map(|home| Path::new(&home).join(".cache/nightshift"));
    let root = root.or_else(shared).or_else(home).unwrap_or_else(|| "nightshift-cache".into());
    let digest = hex(&Sha256::digest(url.as_bytes()));
    let name = url.rsplit('/').find(|part| !part.is_empty()).unwrap_or("model");
    let name: String =
        name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    root.join("models").join(format!("{}-{}", name.trim_start_matches('.'), &digest[..12]))
}

fn fetch(
    storage: &Storage,
    remote: &Location,
    folder: &Path,
    progress: &Progress,
) -> Result<PathBuf, RunError> {
    let failed = |cause: io::Error| RunError::Fetch { folder: folder.into(), source: cause };
    let objects = storage.list_folder(remote)?.objects;
    let wanted: Vec<Entry> =
        objects.into_iter().filter(|e| belongs(e.location.file_name())).collect();
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join(MANIFEST);
    let mut manifest: Manifest = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    progress.enter(Phase::Fetching);
    progress.load_bytes_total.store(wanted.iter().map(|entry| entry.size).sum(), Relaxed);
    progress.load_bytes.store(0, Relaxed);
    for entry in &wanted {
        let name = entry.location.file_name().to_owned();
        let known = manifest.get(&name).is_some_and(|fetched| {
            (fetched.size, &fetched.etag) == (entry.size, &entry.etag)
                && fs::metadata(folder.join(&name)).is_ok_and(|file| file.len() == entry.size)
        });
        if known {
            progress.load_bytes.fetch_add(entry.size, Relaxed);
            continue;
        }
        tracing::info!(file = name, bytes = entry.size, "fetching");
        let sha256 = download(storage, entry, &folder.join(&name), progress)?;
        let fetched = Fetched { size: entry.size, etag: entry.etag.clone(), sha256 };
        manifest.insert(name, fetched);
        let json = serde_json::to_vec_pretty(&manifest).expect("a manifest has text keys only");
        fs::write(&path, json).map_err(failed)?;
    }
    progress.load_bytes.store(0, Relaxed);
    progress.load_bytes_total.store(0, Relaxed);
    progress.enter(Phase::Planning);
    Ok(folder.into())
}

/// The files that a model folder is read from.
fn belongs(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".json") || name.ends_with(".jinja")
}

/// Fetches one file, going on where an earlier attempt at the same version stopped.
fn download(
    storage: &Storage,
    entry: &Entry,
    target: &Path,
    progress: &Progress,
) -> Result<String, RunError> {
    // The version is in the name: pieces of two versions never meet.
    let version = hex(&Sha256::digest(format!("{:?} {}", entry.etag, entry.size)));
    let partial = target.with_file_name(format!(
        ".{}.{}.partial",
        entry.location.file_name(),
        &version[..12]
    ));
    let failed = |source: io::Error| RunError::Fetch { folder: target.into(), source };
    let mut hasher = Sha256::new();
    let have = rehash(&partial, entry.size, &mut hasher).map_err(failed)?;
    progress.load_bytes.fetch_add(have, Relaxed);
    let mut file = OpenOptions::new().create(true).append(true).open(&partial).map_err(failed)?;
    let mut reader = storage.reader(&entry.location, have)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut length = have;
    loop {
        let count = reader.read(&mut chunk).map_err(failed)?;
        if count == 0 {
            break;
        }
        hasher.update(&chunk[..count]);
        file.write_all(&chunk[..count]).map_err(failed)?;
        length += count as u64;
        progress.load_bytes.fetch_add(count as u64, Relaxed);
    }
    if length != entry.size {
        let cause = format!("`{}` has {length} bytes, expected {}", entry.location, entry.size);
        return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, cause)));
    }
    file.sync_all().map_err(failed)?;
    fs::rename(&partial, target).map_err(failed)?;
    Ok(hex(&hasher.finalize()))
}

/// Hashes what an earlier attempt left; gives its length. More than there should be is thrown away.
fn rehash(partial: &Path, size: u64, hasher: &mut Sha256) -> io::Result<u64> {
    let length = match fs::metadata(partial) {
        Ok(metadata) if metadata.len() <= size => metadata.len(),
        Ok(_) => return fs::remove_file(partial).map(|()| 0),
        Err(_) => return Ok(0),
    };
    let mut file = File::open(partial)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(length),
            count => hasher.update(&chunk[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_fetched_once_and_an_interrupted_file_goes_on() {
        let storage = Storage::new().unwrap();
        let remote = storage.locate("memory:///models/x", Path::new("/")).unwrap();
        let weights: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
        let put =
            |name: &str, bytes: Vec<u8>| storage.put(&remote.child(name), bytes.into()).unwrap();
        put("model.safetensors", weights.clone());
        put("config.json", b"{}".to_vec());
        put("picture.png", vec![1]);
        let folder = tempfile::TempDir::new().unwrap();
        let progress = Progress::default();
        let run = || fetch(&storage, &remote, folder.path(), &progress).unwrap();
        // What an interrupted attempt leaves.
        let entry = storage.head(&remote.child("model.safetensors")).unwrap().unwrap();
        let version = hex(&Sha256::digest(format!("{:?} {}", entry.etag, entry.size)));
        let partial = folder.path().join(format!(".model.safetensors.{}.partial", &version[..12]));
        fs::write(&partial, &weights[..1_234_567]).unwrap();
        run();
        assert_eq!(fs::read(folder.path().join("model.safetensors")).unwrap(), weights);
        assert!(!partial.exists() && !folder.path().join("picture.png").exists());
        let manifest: Manifest =
            serde_json::from_slice(&fs::read(folder.path().join(MANIFEST)).unwrap()).unwrap();
        assert_eq!(manifest["model.safetensors"].sha256, hex(&Sha256::digest(&weights)));
        let written = || fs::metadata(folder.path().join("model.safetensors")).unwrap().modified();
        let before = written().unwrap();
        run();
        assert_eq!(written().unwrap(), before, "nothing is fetched twice");
        put("model.safetensors", vec![9; 100]);
        run();
        assert_eq!(fs::read(folder.path().join("model.safetensors")).unwrap(), [9; 100]);
    }

    #[test]
    fn a_cache_folder_has_a_plain_name() {
        let folder = cache_folder("s3://bucket/models/V2 Lite/");
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("V2Lite-"), "{name}");
        assert_ne!(folder, cache_folder("s3://other/models/V2 Lite/"));
    }
}
