//! Why a store cannot do what it is asked, told apart by what a person can do about it.

use std::io;

use super::Location;

/// A failed call to a store; retries are over when it is returned.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The runtime could not be started.
    #[error("the storage threads could not be started: {cause}")]
    Runtime {
        /// The system's words.
        cause: String,
    },
    /// A path or URL that leads nowhere.
    #[error("`{text}` is not a usable path or URL: {cause}")]
    Place {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A URL of a kind that this program does not speak.
    #[error("there is no storage for `{scheme}://` URLs")]
    Scheme {
        /// The URL's scheme.
        scheme: String,
    },
    /// There is no such object.
    #[error("`{location}` does not exist")]
    NotFound {
        /// The object.
        location: String,
    },
    /// There is no such bucket.
    #[error("could not {operation} `{location}`: there is no bucket `{bucket}`")]
    NoBucket {
        /// What was attempted.
        operation: Operation,
        /// The object or folder.
        location: String,
        /// The bucket's URL.
        bucket: String,
    },
    /// The store refused.
    #[error("could not {operation} `{location}`: permission denied ({cause})")]
    Denied {
        /// What was attempted.
        operation: Operation,
        /// The object or folder.
        location: String,
        /// The store's words.
        cause: String,
    },
    /// The disk or quota is full, or the file system takes no writes.
    #[error("could not write `{location}`: {cause}")]
    Full {
        /// The object.
        location: String,
        /// The system's words.
        cause: String,
    },
    /// The object was replaced while it was read.
    #[error("`{location}` was changed while it was read")]
    Changed {
        /// The object.
        location: String,
    },
    /// Anything else.
    #[error("could not {operation} `{location}`: {cause}")]
    Failed {
        /// What was attempted.
        operation: Operation,
        /// The object or folder.
        location: String,
        /// The store's words.
        cause: String,
    },
}

/// What a store was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read an object or look it up.
    Read,
    /// List a folder.
    List,
    /// Write an object.
    Write,
    /// Delete an object.
    Delete,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
            Self::Delete => "delete",
        })
    }
}

impl StorageError {
    pub(super) fn new(operation: Operation, at: &Location, error: object_store::Error) -> Self {
        let location = at.to_string();
        if let Some(bucket) = at.bucket().filter(|_| error.to_string().contains("NoSuchBucket")) {
            return Self::NoBucket { operation, location, bucket: bucket.to_owned() };
        }
        match &error {
            object_store::Error::NotFound { .. } => return Self::NotFound { location },
            object_store::Error::Precondition { .. } => return Self::Changed { location },
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => {
                return Self::Denied { operation, location, cause: deepest(&error) };
            }
            _ => {}
        }
        match system_error(&error) {
            Some(system) => Self::from_system(operation, location, system),
            None => Self::Failed { operation, location, cause: deepest(&error) },
        }
    }

    pub(super) fn from_system(operation: Operation, location: String, system: &io::Error) -> Self {
        let cause = system.to_string();
        match system.kind() {
            io::ErrorKind::NotFound => Self::NotFound { location },
            io::ErrorKind::PermissionDenied => Self::Denied { operation, location, cause },
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem => Self::Full { location, cause },
            _ => Self::Failed { operation, location, cause },
        }
    }

    /// What to do about it, printed under the message.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Scheme { .. } => {
                "use a path, `file:///…`, `s3://bucket/key`, `gs://…`, `az://container/key` or `memory://…`"
            }
            Self::NotFound { .. } => {
                "check the spelling; relative paths start at the job file's folder"
            }
            Self::NoBucket { .. } => {
                "check the bucket's name, `AWS_REGION` and, for other servers, `AWS_ENDPOINT_URL`"
            }
            Self::Denied { location, .. } if location.starts_with("s3://") => {
                "check `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION` and the bucket's policy"
            }
            Self::Denied { location, .. } if location.starts_with("gs://") => {
                "check `GOOGLE_APPLICATION_CREDENTIALS` (or `GOOGLE_SERVICE_ACCOUNT`) and the bucket's policy"
            }
            Self::Denied { location, .. } if location.starts_with("az://") => {
                "check `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY` and the container's policy"
            }
            Self::Denied { .. } => "check the owner and mode of the file and of its folders",
            Self::Full { .. } => {
                "free some space or write elsewhere, then run the same command again: it continues"
            }
            Self::Changed { .. } => "run again when its writer is done",
            Self::Failed { location, .. } if location.starts_with("s3://") => {
                "check the network, `AWS_REGION`, `AWS_ENDPOINT_URL` (and `AWS_ALLOW_HTTP=true` for plain http)"
            }
            Self::Runtime { .. } | Self::Place { .. } | Self::Failed { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// Whether a create-only put failed because the file system knows no hard links, by which it is made.
pub(super) fn lacks_hard_links(error: &object_store::Error) -> bool {
    // EPERM is what link(2) answers there, unlike EACCES for a folder one may not write to.
    const EPERM: i32 = 1;
    system_error(error).is_some_and(|system| {
        system.raw_os_error() == Some(EPERM) || system.kind() == io::ErrorKind::Unsupported
    })
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The operating system's part in an error of the local disk.
fn system_error(error: &object_store::Error) -> Option<&io::Error> {
    match error {
        object_store::Error::Generic { store: "LocalFileSystem", .. } => {
            causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).last()
        }
        _ => None,
    }
}

/// The innermost cause says most and repeats nothing.
fn deepest(error: &object_store::Error) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}
