//! The keys of a part's own metadata: what its writer puts into the footer and its readers look for.

pub(super) const VERSION: &str = "nightshift.version";
pub(super) const MODEL: &str = "nightshift.model";
pub(super) const MODEL_FINGERPRINT: &str = "nightshift.model_fingerprint";
pub(super) const JOB_FINGERPRINT: &str = "nightshift.job_fingerprint";
pub(super) const OBJECT: &str = "nightshift.object";
pub(super) const FIRST_ROW: &str = "nightshift.first_row";
pub(super) const ROWS: &str = "nightshift.rows";
pub(super) const OK_ROWS: &str = "nightshift.ok_rows";
pub(super) const FAILED_ROWS: &str = "nightshift.failed_rows";
pub(super) const FAILURES: &str = "nightshift.failures";
pub(super) const CONTENT_SHA256: &str = "nightshift.content_sha256";
pub(super) const FILE_SHA256: &str = "nightshift.file_sha256";

/// The key-value metadata of a part, with what each key means.
pub(super) const METADATA: &[(&str, &str)] = &[
    (VERSION, "Version of nightshift that wrote the part."),
    (MODEL, "Name of the model."),
    (MODEL_FINGERPRINT, "Fingerprint of the model's files."),
    (JOB_FINGERPRINT, "Fingerprint of everything in the job that changes a completion."),
    (OBJECT, "The input object, as in the column `input`."),
    (FIRST_ROW, "0-based input row of the object that the part starts with."),
    (ROWS, "Input rows."),
    (OK_ROWS, "Input rows with all samples ok."),
    (FAILED_ROWS, "Input rows that failed, or of which a sample did."),
    (FAILURES, "Failed input rows by error code, a JSON object."),
    (
        CONTENT_SHA256,
        "SHA-256 of a canonical form of all columns but `cached_tokens`, `reused` and the timings; equal in all runs of a job.",
    ),
    (FILE_SHA256, "SHA-256 of the whole file, with zeros in the place of this value."),
];
