//! A checkpoint's tensors: mapped from safetensors files and checked against the config. Knows names and
//! shapes, not what the model does with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::ModelError;

/// A Hugging Face folder's weights, for any number of ranks to take theirs from.
pub(crate) struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
    /// Whether the model has asked for it.
    used: AtomicBool,
}

/// The elements of one tensor, read where they lie.
#[derive(Clone, Copy)]
pub(crate) struct Elements<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
}

impl Elements<'_> {
    /// Widens the elements from `start` on, in row-major order, as many as `target` takes.
    pub(crate) fn widen(self, start: usize, target: &mut [f32]) {
        let wide = matches!(self.dtype, Dtype::F32);
        let width = if wide { 4 } else { 2 };
        let bytes = &self.bytes[start * width..(start + target.len()) * width];
        let halves = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self.dtype {
            Dtype::BF16 => {
                let widen = |(x, bits): (&mut f32, u16)| *x = f32::from_bits(u32::from(bits) << 16);
                target.iter_mut().zip(halves).for_each(widen);
            }
            Dtype::F16 => {
                let widen = |(x, bits): (&mut f32, u16)| *x = f16::from_bits(bits).to_f32();
                target.iter_mut().zip(halves).for_each(widen);
            }
            _ => {
                let words = bytes.chunks_exact(4);
                let widen = |(x, b): (&mut f32, &[u8])| {
                    *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                };
                target.iter_mut().zip(words).for_each(widen);
            }
        }
    }
}

impl Checkpoint {
    /// Maps every weight file of a folder and reads the headers.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut checkpoint =
            Self { folder: folder.into(), shards: Vec::new(), tensors: BTreeMap::new() };
        for name in shard_names(folder)? {
            checkpoint.map_shard(folder.join(name))?;
        }
        Ok(checkpoint)
    }

    fn map_shard(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let read = |source| ModelError::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(read)?;
        // SAFETY: weight files are not written while a job runs; a truncated one is found below.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let damaged = |error: safetensors::SafeTensorError| ModelError::Shard {
            path: path.clone(),
            message: error.to_string(),
        };
        let base = map.as_ptr() as usize;
        let shard = self.shards.len();
        for (name, view) in SafeTensors::deserialize(&map).map_err(damaged)?.iter() {
            let start = view.data().as_ptr() as usize - base;
            let entry = Entry {
                shard,
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                start,
                end: start + view.data().len(),
                used: AtomicBool::new(false),
            };
            self.tensors.insert(name.to_owned(), entry);
        }
        self.shards.push(Shard { path, map });
        Ok(())
    }

    /// Tensors of all weight files.
    pub(crate) fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Bytes of all weight files.
    pub(crate) fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.map.len() as u64).sum()
    }

    /// A tensor's elements, once its shape and type are right.
    pub(crate) fn elements(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Result<Elements<'_>, ModelError> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(ModelError::Missing {
                name: name.into(),
                expected: expected.to_vec(),
                folder: self.folder.clone(),
            });
        };
        let shard = &self.shards[entry.shard];
        let (name, path) = (name.to_owned(), shard.path.clone());
        if entry.shape != expected {
            return Err(ModelError::Shape {
                name,
                expected: expected.to_vec(),
                found: entry.shape.clone(),
                path,
            });
        }
        if !matches!(entry.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
            return Err(ModelError::Dtype { name, found: format!("{:?}", entry.dtype), path });
        }
        entry.used.store(true, Ordering::Relaxed);
        Ok(Elements { bytes: &shard.map[entry.start..entry.end], dtype: entry.dtype })
    }

    /// A vector, widened.
    pub(crate) fn vector(&self, name: &str, width: usize) -> Result<Vec<f32>, ModelError> {
        let mut vector = vec![0.0; width];
        self.elements(name, &[width])?.widen(0, &mut vector);
        Ok(vector)
    }

    /// Refuses tensors that nothing has asked for: the config would describe another model.
    pub(crate) fn finish(&self, tied_head: bool) -> Result<(), ModelError> {
        let harmless = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || tied_head && name == "lm_head.weight"
        };
        let extra: Vec<_> = self
            .tensors
            .iter()
            .filter(|(name, entry)| !entry.used.load(Ordering::Relaxed) && !harmless(name))
            .collect();
        match extra.first() {
            None => Ok(()),
            Some((name, entry)) => Err(ModelError::Extra {
                name: (*name).clone(),
                count: extra.len(),
                path: self.shards[entry.shard].path.clone(),
            }),
        }
    }
}

/// The weight files of a folder: those of the index if there is one, else `model.safetensors`.
pub(crate) fn shard_names(folder: &Path) -> Result<Vec<String>, ModelError> {
    let path = folder.join("model.safetensors.index.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return match folder.join("model.safetensors").exists() {
            true => Ok(vec!["model.safetensors".into()]),
            false => Err(ModelError::NoWeights { folder: folder.into() }),
        };
    };
    let index: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| ModelError::Config { path: path.clone(), message: error.to_string() })?;
    let files =
        index["weight_map"].as_object().map(|map| map.values().filter_map(|file| file.as_str()));
    let names: BTreeSet<String> = files.into_iter().flatten().map(str::to_owned).collect();
    // Names come from a file that may be hostile: they must stay inside of the folder.
    let plain = |name: &String| Path::new(name).components().count() == 1 && !name.starts_with('.');
    match !names.is_empty() && names.iter().all(plain) {
        true => Ok(names.into_iter().collect()),
        false => Err(ModelError::Config {
            path,
            message: "`weight_map` does not name files of this folder".into(),
        }),
    }
}
