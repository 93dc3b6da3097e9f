//! The source as it stands: the paths to save, what is in their directories, and what is left out.

mod bounds;
mod excludes;
mod listing;
mod open_dirs;
mod paths;
mod roots;

pub use bounds::{Boundaries, Crossing, Skip, is_mount_point};
pub use excludes::Excludes;
pub use listing::{Listing, attr, directory_nlink, list, readable_xattrs, xattrs, xattrs_of_fd};
pub use open_dirs::{OpenDir, OpenDirs};
pub use paths::{absolute, open_path, open_place, parent_of, path_of};
pub use roots::{Paths, Roots};
