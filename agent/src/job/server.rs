//! What the engine asks of the server, apart from how it is asked.
//!
//! Every request can be made twice without harm, so that it can be tried again after an outage.

use backup::chunk::{MAX_STORED_LEN, RecordHeader};
use backup::manifest::RestorePointId;
use backup::{ByteRange, Digest, chunk};
use protocol::api::{self, FinishList};
use protocol::job::Job;
use protocol::unlock::VolumeKey;

use crate::net::http::{RequestError, Server};

/// The largest manifest that is read, in bytes.
const MANIFEST_LIMIT: u64 = 64 << 20;

/// The most bytes of an answer with keys.
const KEYS_LIMIT: u64 = 512 << 10;

/// A server that keeps restore points.
pub(crate) trait ChunkServer: Sync {
    /// The manifest of a restore point, as JSON.
    fn manifest(&self, id: &RestorePointId) -> Result<Vec<u8>, RequestError>;
    /// A part of an encoded chunk list of a restore point.
    fn chunk_list(
        &self,
        id: &RestorePointId,
        digest: &Digest,
        part: ByteRange,
    ) -> Result<Vec<u8>, RequestError>;
    /// The records of chunks, in the order asked for, in place of what is in `records`; at most
    /// [`api::MAX_DIGESTS`].
    fn fetch(&self, digests: &[Digest], records: &mut Vec<u8>) -> Result<(), RequestError>;
    /// For each digest whether the server lacks it; at most [`api::MAX_DIGESTS`].
    fn missing(&self, digests: &[Digest]) -> Result<Vec<bool>, RequestError>;
    /// Sends records, at most [`api::MAX_UPLOAD`] bytes.
    fn upload(&self, records: &[u8]) -> Result<(), RequestError>;
    /// Sends a part of an encoded chunk list, of which it has all before byte `offset`; at most
    /// [`api::MAX_UPLOAD`] bytes. Offset 0 begins it.
    fn list_part(&self, name: ListName, offset: u64, part: &[u8]) -> Result<(), RequestError>;
    /// Says that a chunk list is whole.
    fn finish_list(&self, name: ListName, whole: &FinishList) -> Result<(), RequestError>;
    /// Makes the restore point: the commit of a capture.
    fn publish(&self, manifest: &[u8]) -> Result<(), RequestError>;
    /// The keys of the encrypted volumes that the capture opens.
    fn keys(&self) -> Result<Vec<VolumeKey>, RequestError>;
    /// A file of the boot folder, of at most `limit` bytes.
    fn boot_file(&self, name: &str, limit: u64) -> Result<Vec<u8>, RequestError>;
}

/// What a region's chunk list is called until it is whole and its digest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ListName {
    /// The disk's number in the manifest.
    pub(crate) disk: u32,
    /// The region's index in its disk.
    pub(crate) region: usize,
}

impl std::fmt::Display for ListName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.disk, self.region)
    }
}

/// The server over HTTP, for one job.
#[derive(Debug)]
pub(crate) struct HttpChunkServer<'a> {
    server: &'a Server,
    job: &'a Job,
}

impl<'a> HttpChunkServer<'a> {
    /// The server as `job` uses it.
    pub(crate) const fn new(server: &'a Server, job: &'a Job) -> Self {
        Self { server, job }
    }
}

/// 32 bytes each, in order.
fn digest_bytes(digests: &[Digest]) -> Vec<u8> {
    digests
        .iter()
        .flat_map(|digest| *digest.as_bytes())
        .collect()
}

/// How long a server may check a restore point before it publishes it.
const PUBLISH_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1800);

impl ChunkServer for HttpChunkServer<'_> {
    fn manifest(&self, id: &RestorePointId) -> Result<Vec<u8>, RequestError> {
        self.server
            .get_bytes(&api::restore_point_manifest(id), MANIFEST_LIMIT)
    }

    fn boot_file(&self, name: &str, limit: u64) -> Result<Vec<u8>, RequestError> {
        self.server.get_bytes(&format!("/boot/{name}"), limit)
    }

    fn chunk_list(
        &self,
        id: &RestorePointId,
        digest: &Digest,
        part: ByteRange,
    ) -> Result<Vec<u8>, RequestError> {
        let path = api::restore_point_list_part(id, digest, part.start(), part.len());
        self.server.get_bytes(&path, part.len())
    }

    fn fetch(&self, digests: &[Digest], records: &mut Vec<u8>) -> Result<(), RequestError> {
        let record = u64::from(MAX_STORED_LEN) + RecordHeader::LEN as u64;
        let limit = digests.len() as u64 * record;
        self.server
            .post_for(api::FETCH_CHUNKS, &digest_bytes(digests), limit, records)
    }

    fn missing(&self, digests: &[Digest]) -> Result<Vec<bool>, RequestError> {
        let path = api::missing_chunks(&self.job.id);
        let limit = digests.len() as u64;
        let answer = self
            .server
            .post_bytes(&path, &digest_bytes(digests), limit)?;
        if answer.len() != digests.len() || answer.iter().any(|byte| *byte > 1) {
            return Err(RequestError::Answer {
                request: format!("POST {path}"),
                reason: format!(
                    "{} bytes (expected {} of 0 or 1)",
                    answer.len(),
                    digests.len()
                ),
            });
        }
        Ok(answer.iter().map(|byte| *byte == 1).collect())
    }

    fn upload(&self, records: &[u8]) -> Result<(), RequestError> {
        self.server
            .post_bytes(&api::upload_chunks(&self.job.id), records, 4096)?;
        Ok(())
    }

    fn list_part(&self, name: ListName, offset: u64, part: &[u8]) -> Result<(), RequestError> {
        let path = api::list_part(&self.job.id, &name.to_string());
        self.server
            .put_bytes(&format!("{path}?offset={offset}"), part)
    }

    fn finish_list(&self, name: ListName, whole: &FinishList) -> Result<(), RequestError> {
        let path = api::list_part(&self.job.id, &name.to_string());
        self.server.send_json(&path, whole)
    }

    fn publish(&self, manifest: &[u8]) -> Result<(), RequestError> {
        let server = self.server.patient(PUBLISH_PATIENCE);
        server.post_bytes(&api::publish(&self.job.id), manifest, 1 << 20)?;
        Ok(())
    }

    fn keys(&self) -> Result<Vec<VolumeKey>, RequestError> {
        let path = api::job_keys(&self.job.id);
        let answer = self.server.get_bytes(&path, KEYS_LIMIT)?;
        serde_json::from_slice(&answer).map_err(|_| RequestError::Answer {
            request: format!("GET {path}"),
            // What serde says may have a part of a key in it.
            reason: "not a list of keys".to_owned(),
        })
    }
}

/// A record as it goes over the wire: header and one zstd frame.
///
/// # Errors
/// What zstd says.
#[cfg(test)]
pub(crate) fn encode_record(
    compressor: &mut zstd::bulk::Compressor<'_>,
    digest: Digest,
    plain: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut record = Vec::new();
    chunk::append_record(compressor, digest, plain, &mut record)?;
    Ok(record)
}

const _: () = assert!(
    MAX_STORED_LEN as usize + RecordHeader::LEN <= api::MAX_UPLOAD && chunk::MAX_CHUNK_LEN > 0
);
