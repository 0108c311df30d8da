//! Files in memory: the bytes of a model as they lie on disk, read when they are touched.
//!
//! A file that is cut off while it is mapped makes its lost pages unreadable, and touching one raises SIGBUS, which ends a
//! process. Here it does not: the pages become zeros, and [`Mapped::check`] says that the file was cut off or written to, so
//! that whoever computes with it gets an error in place of a result. The handler leaves other memory's signals to whoever had them
//! before.

#![allow(unsafe_code)] // the map, the handler and what it replaces; each block says why it is sound

use std::fs::{File, Metadata};
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use memmap2::{Advice, Mmap, MmapMut, MmapOptions, UncheckedAdvice};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::error::{Error, Result};

/// Bytes of a file, or memory that looks like one.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Mmap,
    path: PathBuf,
    /// `None` for memory that no file is behind.
    region: Option<&'static Region>,
    /// The file, and what it was when it was mapped.
    file: Option<(File, Metadata)>,
}

impl Mapped {
    /// These bytes of a file; `path` is for messages.
    pub fn file(path: &Path, file: &File, range: Range<u64>) -> io::Result<Self> {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        install_handler()?;
        // SAFETY: the map is only read, and lost pages become zeros. A file that is rewritten in place changes what is read,
        // which is bytes without further meaning until they are checked. The range is within the file: all of it, or checked
        // when the pack was opened.
        let map = unsafe { MmapOptions::new().offset(range.start).len(length).map(file) };
        let map = map.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => {
                io::Error::other(format!("out of memory: no room for a map of {length} bytes"))
            }
            _ => error,
        })?;
        // Hints; failure costs only speed. What is not in the page cache yet is read into large pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise(Advice::HugePage);
        let _ = map.advise(Advice::WillNeed);
        let region = Some(Region::over(&map));
        Ok(Mapped { map, path: path.to_owned(), region, file: Some((file.try_clone()?, file.metadata()?)) })
    }

    /// Memory that was filled.
    pub fn memory(path: &Path, bytes: MmapMut) -> io::Result<Self> {
        Ok(Mapped { map: bytes.make_read_only()?, path: path.to_owned(), region: None, file: None })
    }

    /// # Errors
    /// When the file was cut off or written to since it was mapped.
    pub fn check(&self) -> Result<()> {
        let was_lost = self.region.is_some_and(|region| region.lost.load(Ordering::Acquire));
        let Some((file, then)) = &self.file else { return Ok(()) };
        // What is lost of the last page reads as zeros, without a signal.
        let now = file.metadata().map_err(Error::io(&self.path))?;
        if was_lost || now.len() < then.len() {
            return Err(Error::malformed(
                &self.path,
                "was cut off while it was in use; start again with the whole file",
            ));
        }
        if now.modified().ok() != then.modified().ok() {
            return Err(Error::malformed(&self.path, "was written to while it was in use; start again"));
        }
        Ok(())
    }

    /// Hand the pages that lie within `part` back to the system once they have been copied, so that a model is never in
    /// memory twice. They must not be read again: where no file is behind them, they are zeros then.
    pub fn release(&self, part: &[u8]) {
        let page = page_size();
        let start = (part.as_ptr() as usize).next_multiple_of(page);
        let end = (part.as_ptr() as usize + part.len()) / page * page;
        if start < end {
            // SAFETY: whole pages of this map, which is only read; see above for what is read later.
            let _ = unsafe {
                self.map.unchecked_advise_range(
                    UncheckedAdvice::DontNeed,
                    start - self.map.as_ptr() as usize,
                    end - start,
                )
            };
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some(region) = self.region {
            region.start.store(0, Ordering::Release); // before the map goes, and others get its addresses
        }
    }
}

/// A map that the handler knows. They are never freed, since the handler may be reading one, but used again.
#[derive(Debug)]
struct Region {
    /// The first address; 0 while there is no map.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Whether pages were replaced with zeros.
    lost: AtomicBool,
    next: AtomicPtr<Region>,
}

static REGIONS: AtomicPtr<Region> = AtomicPtr::new(null_mut());
/// Held by whoever changes which maps are watched; the handler takes no locks.
static CHANGE: Mutex<()> = Mutex::new(());

impl Region {
    fn over(map: &Mmap) -> &'static Region {
        let _change = CHANGE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let region = Region::all().find(|region| region.start.load(Ordering::Acquire) == 0).unwrap_or_else(|| {
            let new: &'static mut Region = Box::leak(Box::new(Region {
                start: 0.into(),
                end: 0.into(),
                lost: false.into(),
                next: REGIONS.load(Ordering::Acquire).into(),
            }));
            REGIONS.store(new, Ordering::Release);
            new
        });
        region.lost.store(false, Ordering::Release);
        region.end.store(map.as_ptr() as usize + map.len(), Ordering::Release);
        region.start.store(map.as_ptr() as usize, Ordering::Release);
        region
    }

    fn all() -> impl Iterator<Item = &'static Region> {
        // SAFETY: the pointers are null or come from `Box::leak`.
        let at = |pointer: &AtomicPtr<Region>| unsafe { pointer.load(Ordering::Acquire).as_ref() };
        std::iter::successors(at(&REGIONS), move |region| at(&region.next))
    }
}

fn page_size() -> usize {
    // SAFETY: it asks for a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// What SIGBUS did before.
static PREVIOUS: OnceLock<SigAction> = OnceLock::new();

fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), nix::Error>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let action = SigAction::new(
            SigHandler::SigAction(replace_lost_pages),
            SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK,
            SigSet::empty(),
        );
        // SAFETY: the handler does only what a signal handler may: atomics and system calls.
        let previous = unsafe { sigaction(Signal::SIGBUS, &action) }?;
        let _ = PREVIOUS.set(previous);
        Ok(())
    });
    installed.map_err(io::Error::from)
}

/// Put zeros where a map has lost its file; the access that failed is then made again.
extern "C" fn replace_lost_pages(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system hands a valid `siginfo_t` to a handler of this kind.
    let address = unsafe { (*info).si_addr() } as usize;
    let holds = |region: &&Region| {
        let start = region.start.load(Ordering::Acquire);
        start != 0 && (start..region.end.load(Ordering::Acquire)).contains(&address)
    };
    if let Some(region) = Region::all().find(holds) {
        let (page, end) = (address / page_size() * page_size(), region.end.load(Ordering::Acquire));
        region.lost.store(true, Ordering::Release);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED;
        // SAFETY: pages of a map of ours, from the lost one to its end, which nobody writes; they are unmapped with the map.
        let zeros = unsafe { libc::mmap(page as *mut _, end - page, libc::PROT_READ, flags, -1, 0) };
        if zeros != libc::MAP_FAILED {
            return;
        }
    }
    // Not ours: as if this handler were not there, the access fails again.
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: it restores what was there.
    let _ = unsafe { sigaction(Signal::SIGBUS, PREVIOUS.get().unwrap_or(&default)) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file of `pages` pages that hold their number, mapped.
    fn file(pages: usize) -> (tempfile::NamedTempFile, Mapped) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for i in 0..pages {
            file.write_all(&vec![i as u8 + 1; page_size()]).unwrap();
        }
        let mapped = Mapped::file(file.path(), file.as_file(), 0..(pages * page_size()) as u64).unwrap();
        (file, mapped)
    }

    #[test]
    fn a_file_that_is_cut_off_reads_as_zeros_and_is_told() {
        let (cut, mapped) = file(4);
        let (_whole, other) = file(4);
        assert_eq!((mapped[0], mapped[3 * page_size()]), (1, 4));
        cut.as_file().set_len(page_size() as u64).unwrap();
        assert_eq!((mapped[0], mapped[page_size()], mapped[3 * page_size()]), (1, 0, 0));
        let error = mapped.check().unwrap_err().to_string();
        assert!(error.contains(&cut.path().display().to_string()) && error.contains("was cut off"), "{error}");
        assert!(other.check().is_ok() && other[3 * page_size()] == 4);
        drop(mapped);
        let (_again, mapped) = file(4);
        assert!(mapped.check().is_ok(), "the next map starts afresh");
    }

    #[test]
    fn a_file_that_loses_a_few_bytes_or_is_written_to_is_told() {
        let (cut, mapped) = file(2);
        cut.as_file().set_len(2 * page_size() as u64 - 5).unwrap();
        assert!(mapped.check().unwrap_err().to_string().contains("was cut off"));
        let (written, mapped) = file(2);
        assert!(mapped.check().is_ok());
        written.as_file().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(mapped.check().unwrap_err().to_string().contains("was written to"));
    }

    #[test]
    fn released_memory_leaves_its_neighbours() {
        let page = page_size();
        let mut bytes = MmapMut::map_anon(4 * page).unwrap();
        bytes.fill(7);
        let memory = Mapped::memory("memory".as_ref(), bytes).unwrap();
        memory.release(&memory[page / 2..3 * page + page / 2]);
        assert!(memory[..page].iter().chain(&memory[3 * page..]).all(|&byte| byte == 7));
    }
}
