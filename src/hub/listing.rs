//! What a model's repository holds, and which of its files a model needs.

use serde::Deserialize;
use ureq::http::HeaderMap;
use ureq::http::header::{CONTENT_LENGTH, ETAG};

use super::client::Client;
use super::name::{is_commit, is_file_name, is_hex};
use crate::checkpoint::{Index, WEIGHTS, WEIGHTS_INDEX, template_name, weights_among};
use crate::error::{Error, HubProblem, Result};
use crate::mlxpack::{TEXTS, is_about};

/// The largest text that is fetched for being a licence; that of a large model has some 30 KB.
const MAX_ABOUT_BYTES: u64 = 1 << 20;
/// What the names of files of pickled weights end with.
const PICKLED: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of a large file, git's SHA-1 of a small one.
    pub(super) etag: String,
}

/// A repository at a commit.
pub(super) struct Listing {
    pub commit: String,
    /// What it is called now.
    pub id: Option<String>,
    files: Vec<Sibling>,
}

/// The answer of `/api/models/ORG/NAME/revision/REVISION?blobs=true`, as far as it is used.
#[derive(Deserialize)]
struct Info {
    id: Option<String>,
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Ask the hub.
    pub fn fetch(client: &Client) -> Result<Self> {
        let info: Info = serde_json::from_slice(&client.info()?).map_err(|error| no_hub(client, error.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(no_hub(client, format!("its commit is {:?}", info.sha)));
        }
        Ok(Listing { commit: info.sha, id: info.id, files: info.siblings })
    }

    /// What is to be read first: the configuration, and which file holds each tensor.
    ///
    /// # Errors
    /// When the repository holds no model that is read here.
    pub fn first(&self, client: &Client) -> Result<Vec<HubFile>> {
        self.check().map_err(|problem| client.error(problem))?;
        let first = ["config.json", WEIGHTS_INDEX].into_iter().filter(|name| self.has(name));
        first.map(|name| self.describe(client, name)).collect()
    }

    /// The other files that the model needs, after its index.
    ///
    /// # Errors
    /// When the repository lacks one of them.
    pub fn others(&self, client: &Client, index: Option<Index>) -> Result<Vec<HubFile>> {
        let texts = TEXTS.into_iter().filter(|name| !["config.json", WEIGHTS_INDEX].contains(name) && self.has(name));
        let is_template = |name: &&str| template_name(name).is_some_and(is_file_name);
        let templates = self.names().filter(is_template);
        let mut files = texts.chain(templates).map(|name| self.describe(client, name)).collect::<Result<Vec<_>>>()?;
        let about = self.names().filter(|name| is_about(name) && !name.to_lowercase().starts_with("readme"));
        for name in about.filter(|name| is_file_name(name)) {
            let file = self.describe(client, name)?;
            files.extend(Some(file).filter(|file| file.size <= MAX_ABOUT_BYTES));
        }
        let weights = weights_among(&self.names().collect::<Vec<_>>(), index);
        if weights.is_empty() {
            return Err(client.error(HubProblem::NoModel { file: WEIGHTS }));
        }
        for name in weights {
            if !is_file_name(&name) || !self.has(&name) {
                let problem = format!("{WEIGHTS_INDEX} names {name:?}, which is no file of the repository");
                return Err(no_hub(client, problem));
            }
            files.push(self.describe(client, &name)?);
        }
        Ok(files)
    }

    fn check(&self) -> Result<(), HubProblem> {
        if !self.has(WEIGHTS_INDEX) && weights_among(&self.names().collect::<Vec<_>>(), None).is_empty() {
            let like = |endings: &[&str]| self.names().find(|name| endings.iter().any(|end| name.ends_with(end)));
            return Err(match (like(&PICKLED), like(&[".gguf"])) {
                (Some(name), _) => HubProblem::NoSafetensors {
                    what: format!("pickled ({name})"),
                    advice: "reading those can run programs, so it is not done; look for the model with safetensors",
                },
                (_, Some(name)) => HubProblem::NoSafetensors {
                    what: format!("GGUF ({name})"),
                    advice: "look for the model that it was made from",
                },
                _ => HubProblem::NoModel { file: WEIGHTS },
            });
        }
        match ["config.json", "tokenizer.json"].into_iter().find(|name| !self.has(name)) {
            Some(file) => Err(HubProblem::NoModel { file }),
            None => Ok(()),
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.rfilename.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.names().any(|found| found == name)
    }

    /// Size and hash, which some servers tell only with the file.
    fn describe(&self, client: &Client, name: &str) -> Result<HubFile> {
        let found = self.files.iter().find(|file| file.rfilename == name).expect("it is one of them");
        let (size, etag) = match found {
            Sibling { lfs: Some(lfs), .. } => (Some(lfs.size), Some(lfs.sha256.clone())),
            Sibling { size, blob_id, .. } => (*size, blob_id.clone()),
        };
        let (size, etag) = match (size, etag) {
            (Some(size), Some(etag)) => (size, etag),
            _ => described_by(&client.head(&self.commit, name)?)
                .ok_or_else(|| no_hub(client, format!("it does not tell size and hash of {name}")))?,
        };
        if !is_hex(&etag, 40) && !is_hex(&etag, 64) {
            return Err(no_hub(client, format!("the hash of {name} is {etag:?}")));
        }
        Ok(HubFile { name: name.to_owned(), size, etag })
    }
}

/// Those of the file itself where the headers are of a redirect.
fn described_by(headers: &HeaderMap) -> Option<(u64, String)> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let size = text("X-Linked-Size").or_else(|| text(CONTENT_LENGTH.as_str()))?.parse().ok()?;
    let etag = text("X-Linked-Etag").or_else(|| text(ETAG.as_str()))?;
    Some((size, etag.trim_start_matches("W/").trim_matches('"').to_owned()))
}

fn no_hub(client: &Client, problem: String) -> Error {
    client.error(HubProblem::NoHub { host: client.host(), problem })
}
