//! A checkpoint's tensors: mapped from safetensors files, checked against the config, packed for the
//! operations. Knows names and shapes, not what the model does with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::ModelError;
use crate::ops::{Held, Matrix};

/// Why a lock is never poisoned.
const NEVER_PANICS: &str = "no holder of the lock panics";

/// A Hugging Face folder's weights, for any number of ranks to take theirs from.
pub(crate) struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
    /// Names that were asked for, by whichever rank.
    used: Mutex<BTreeSet<String>>,
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
}

/// The elements of one tensor, read where they lie.
#[derive(Clone, Copy)]
pub(crate) struct Elements<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
}

impl<'a> Elements<'a> {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.bytes.len() / if self.dtype == Dtype::F32 { 4 } else { 2 }
    }

    /// Whether they are held as BF16.
    pub(crate) fn is_bf16(&self) -> bool {
        self.dtype == Dtype::BF16
    }

    /// Their bytes, little-endian.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Element `index` in row-major order, widened.
    #[inline]
    pub(crate) fn at(self, index: usize) -> f32 {
        let half = |i: usize| u16::from_le_bytes([self.bytes[2 * i], self.bytes[2 * i + 1]]);
        match self.dtype {
            Dtype::BF16 => bf16::from_bits(half(index)).to_f32(),
            Dtype::F16 => f16::from_bits(half(index)).to_f32(),
            _ => {
                let bytes = &self.bytes[4 * index..4 * index + 4];
                f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
        }
    }
}

impl Checkpoint {
    /// Maps every weight file of a folder and reads the headers.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self {
            folder: folder.into(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            used: Mutex::default(),
        };
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
        self.claim(name, expected)?;
        Ok(self.claimed(name))
    }

    /// Two tensors of one shape, to be read together.
    pub(crate) fn pair(
        &self,
        names: [&str; 2],
        expected: &[usize],
    ) -> Result<[Elements<'_>; 2], ModelError> {
        for name in names {
            self.claim(name, expected)?;
        }
        Ok(names.map(|name| self.claimed(name)))
    }

    fn claimed(&self, name: &str) -> Elements<'_> {
        let entry = &self.tensors[name];
        Elements {
            bytes: &self.shards[entry.shard].map[entry.start..entry.end],
            dtype: entry.dtype,
        }
    }

    fn claim(&self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
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
        self.used.lock().expect(NEVER_PANICS).insert(name);
        Ok(())
    }

    /// A vector, widened.
    pub(crate) fn vector(&self, name: &str, width: usize) -> Result<Vec<f32>, ModelError> {
        let elements = self.elements(name, &[width])?;
        Ok((0..width).map(|i| elements.at(i)).collect())
    }

    /// A weight `[outputs, inputs]`, packed.
    pub(crate) fn matrix(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
        held: Held,
    ) -> Result<Matrix, ModelError> {
        let elements = self.elements(name, &[outputs, inputs])?;
        Ok(Matrix::pack(outputs, inputs, held, |o, i| elements.at(o * inputs + i)))
    }

    /// Refuses tensors that nothing has asked for: the config would describe another model.
    pub(crate) fn finish(&self, tied_head: bool) -> Result<(), ModelError> {
        let harmless = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || tied_head && name == "lm_head.weight"
        };
        let used = self.used.lock().expect(NEVER_PANICS);
        let unused = |name: &str| !used.contains(name) && !harmless(name);
        let extra: Vec<_> = self.tensors.iter().filter(|(name, _)| unused(name)).collect();
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
