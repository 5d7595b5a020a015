//! The data folder's identity: which node of which cluster it belongs to. A folder never changes either: a node that
//! finds somebody else's data refuses to start.
//!
//! ```text
//!   DIR/node.json   who      DIR/log/   the log engine      DIR/state/   the state store (can be rebuilt)
//! ```

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use busbar_proto::NodeId;
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// The content of `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderIdentity {
    format: u32,
    /// The cluster's name.
    pub cluster: String,
    /// Told apart from other clusters of that name; empty until the node has learned it.
    #[serde(default)]
    pub incarnation: String,
    /// The node's id.
    pub node: NodeId,
}

impl FolderIdentity {
    /// Of a new node.
    pub fn new(cluster: String, incarnation: String, node: NodeId) -> Self {
        Self { format: FORMAT, cluster, incarnation, node }
    }
}

/// Where a folder keeps what.
#[derive(Clone, Debug)]
pub struct DataFolder(PathBuf);

impl DataFolder {
    /// Makes the folder if it is missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        let context = |error: io::Error| {
            io::Error::new(error.kind(), format!("can't use the data folder {}: {error}", path.display()))
        };
        fs::create_dir_all(path).map_err(context)?;
        Ok(Self(path.to_owned()))
    }

    /// The log engine's folder.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The state store's folder.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    fn file(&self) -> PathBuf {
        self.0.join("node.json")
    }

    /// Whose folder it is; `None` if it is new.
    pub fn identity(&self) -> io::Result<Option<FolderIdentity>> {
        let path = self.file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io::Error::new(error.kind(), format!("can't read {}: {error}", path.display()))),
        };
        let identity: FolderIdentity = serde_json::from_slice(&text)
            .map_err(|error| io::Error::other(format!("{} is damaged: {error}", path.display())))?;
        if identity.format != FORMAT {
            let message = format!("{} is of format {}, this version reads {FORMAT}", path.display(), identity.format);
            return Err(io::Error::other(message));
        }
        Ok(Some(identity))
    }

    /// Records whose folder it is; durable on return.
    pub fn claim(&self, identity: &FolderIdentity) -> io::Result<()> {
        let (path, draft) = (self.file(), self.0.join("node.json.new"));
        let mut file = fs::File::create(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(identity)?)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        fs::File::open(&self.0)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_folder_remembers() {
        let place = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(&place.path().join("new")).unwrap();
        assert_eq!(folder.identity().unwrap(), None);
        let identity = FolderIdentity::new("c".into(), String::new(), NodeId::new(3));
        folder.claim(&identity).unwrap();
        assert_eq!(folder.identity().unwrap(), Some(identity));
        fs::write(folder.file(), "{").unwrap();
        assert!(folder.identity().unwrap_err().to_string().contains("node.json is damaged"));
    }
}
