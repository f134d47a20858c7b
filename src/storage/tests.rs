//! The contract of a store, kept by each kind that needs no server, and what is special to local paths.

use std::io::Read;

use tempfile::TempDir;

use super::*;

fn storage() -> Storage {
    Storage::new().unwrap()
}

/// The same root on the local disk and in memory.
fn roots(storage: &Storage, folder: &TempDir) -> [Location; 2] {
    [
        storage.locate("out", folder.path()).unwrap(),
        storage.locate("memory://out", folder.path()).unwrap(),
    ]
}

fn names(entries: &[Entry], root: &Location) -> Vec<String> {
    let prefix = root.url() + "/";
    entries
        .iter()
        .map(|entry| entry.location.url().strip_prefix(&prefix).unwrap().to_owned())
        .collect()
}

#[test]
fn what_is_put_is_read_listed_and_looked_up() {
    let (storage, folder) = (storage(), TempDir::new().unwrap());
    for root in roots(&storage, &folder) {
        assert!(storage.list(&root).unwrap().is_empty(), "a folder that is not there yet is empty");
        assert!(storage.list_folder(&root).unwrap().objects.is_empty());
        let object = root.child("parts/b.parquet");
        assert!(storage.head(&object).unwrap().is_none());
        storage.put(&object, Bytes::from_static(b"0123456789")).unwrap();
        storage.put(&root.child("a"), Bytes::new()).unwrap();

        assert_eq!(storage.get(&object).unwrap(), "0123456789");
        assert_eq!(storage.get_range(&object, 2..5).unwrap(), "234");
        assert_eq!(storage.get_range(&object, 5..5).unwrap(), "");
        assert_eq!(storage.head(&object).unwrap().unwrap().size, 10);
        assert!(storage.head(&root.child("parts")).unwrap().is_none(), "a folder is no object");
        assert_eq!(names(&storage.list(&root).unwrap(), &root), ["a", "parts/b.parquet"]);
        let level = storage.list_folder(&root).unwrap();
        assert_eq!(names(&level.objects, &root), ["a"]);
        assert_eq!(level.folders[0].file_name(), "parts");
        let mut text = String::new();
        storage.reader(&object, 7).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "789");
        assert_eq!(storage.reader(&object, 99).unwrap().read_to_string(&mut text).unwrap(), 0);

        storage.delete(&object).unwrap();
        storage.delete(&object).unwrap();
        assert!(matches!(storage.get(&object), Err(StorageError::NotFound { .. })));
    }
}

#[test]
fn a_create_only_put_leaves_what_is_there() {
    let (storage, folder) = (storage(), TempDir::new().unwrap());
    for root in roots(&storage, &folder) {
        let part = root.child("parts/a/000000000000.parquet");
        assert_eq!(storage.put_create(&part, "first".into()).unwrap(), PutOutcome::Created);
        assert_eq!(storage.put_create(&part, "second".into()).unwrap(), PutOutcome::AlreadyExists);
        assert_eq!(storage.get(&part).unwrap(), "first");
        storage.put(&part, "third".into()).unwrap();
        assert_eq!(storage.get(&part).unwrap(), "third");
    }
}

#[test]
fn of_many_racing_creators_one_wins() {
    let (storage, folder) = (storage(), TempDir::new().unwrap());
    for root in roots(&storage, &folder) {
        let part = &root.child("part");
        let created = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|racer| {
                    let storage = storage.clone();
                    scope.spawn(move || storage.put_create(part, racer.to_string().into()).unwrap())
                })
                .collect();
            racers
                .into_iter()
                .filter_map(|racer| (racer.join().unwrap() == PutOutcome::Created).then_some(()))
                .count()
        });
        assert_eq!(created, 1, "{part}");
    }
}

#[test]
fn names_are_taken_as_they_are() {
    let (storage, folder) = (storage(), TempDir::new().unwrap());
    for name in [
        "a b.jsonl",
        "a%20b.jsonl",
        "100%.jsonl",
        "a#b?.jsonl",
        "[1]{2}~^.jsonl",
        "grüße 你好.jsonl",
        "a\\b",
    ] {
        std::fs::write(folder.path().join(name), name).unwrap();
        let found = storage.locate(name, folder.path()).unwrap();
        assert_eq!(storage.get(&found).unwrap(), name);
        assert_eq!(found.local_path().unwrap(), folder.path().join(name));
        let child = storage.locate(".", folder.path()).unwrap().child(name);
        assert_eq!(storage.head(&child).unwrap().unwrap().size, name.len() as u64, "{name}");
        assert!(
            storage
                .list(
                    &storage
                        .locate("", folder.path())
                        .unwrap_or(storage.locate(".", folder.path()).unwrap())
                )
                .unwrap()
                .iter()
                .any(|entry| entry.location.file_name() == name)
        );
    }
}

#[test]
fn paths_lead_where_the_file_system_leads() {
    let (storage, folder) = (storage(), TempDir::new().unwrap());
    let real = folder.path().canonicalize().unwrap();
    std::fs::create_dir_all(real.join("deep/er")).unwrap();
    std::fs::write(real.join("deep/file"), "linked").unwrap();
    std::os::unix::fs::symlink(real.join("deep/er"), real.join("link")).unwrap();
    std::os::unix::fs::symlink(real.join("deep/file"), real.join("linked_file")).unwrap();
    for (text, path) in [
        ("jobs/../out", "out"),
        ("./out/.//x", "out/x"),
        ("link/../file", "deep/file"), // the parent of a link's target
        ("not/there/../yet", "not/yet"),
    ] {
        let found = storage.locate(text, &real).unwrap();
        assert_eq!(found.local_path().unwrap(), real.join(path), "{text}");
    }
    assert_eq!(storage.get(&storage.locate("linked_file", &real).unwrap()).unwrap(), "linked");
    let url = format!("file://{}/deep/file", real.display());
    assert_eq!(
        storage.get(&storage.locate(&url, "elsewhere".as_ref()).unwrap()).unwrap(),
        "linked"
    );
    let listed = storage.list(&storage.locate(".", &real).unwrap()).unwrap();
    assert_eq!(listed.len(), 2, "a linked file is listed beside its target: {listed:?}");
}

#[test]
fn a_location_is_shown_as_a_person_writes_it() {
    let storage = storage();
    for (text, base, shown) in [
        ("../out/a", "jobs", "out/a"),
        ("../../out", "jobs", "../out"),
        (".", "", "."),
        ("a.jsonl", "/data", "/data/a.jsonl"),
        ("/../x", "", "/x"),
        ("s3://key:secret@bucket/a/b%20c", "", "s3://bucket/a/b%20c"),
        ("memory:///a", "", "memory://a"),
        ("file:///a%20b", "", "/a b"),
    ] {
        assert_eq!(storage.locate(text, base.as_ref()).unwrap().to_string(), shown, "{text}");
    }
    let here = storage.locate(".", "".as_ref()).unwrap();
    assert_eq!(here.child("parts/a").to_string(), "parts/a");
    assert!(here.child("../a").url().ends_with("%2E%2E/a"), "a name never leads out of its folder");
}

#[test]
fn a_place_that_cannot_be_is_refused() {
    let storage = storage();
    for (text, message) in [
        ("ftp://host/a", "there is no storage for `ftp://` URLs"),
        ("s3:///a", "`s3:///a` is not a usable path or URL: there is no bucket name"),
        (
            "file://a",
            "`file://a` is not a usable path or URL: a file URL has three slashes: file:///folder/file",
        ),
        ("", "`` is not a usable path or URL: the path is empty"),
    ] {
        assert_eq!(storage.locate(text, "".as_ref()).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_failed_write_says_what_where_and_what_to_do() {
    let (storage, folder) = (storage(), TempDir::new().unwrap());
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error =
        storage.put(&storage.locate("file/part", folder.path()).unwrap(), "x".into()).unwrap_err();
    assert!(error.to_string().starts_with("could not write `"), "{error}");
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let full = StorageError::from_system(Operation::Write, "out/part".into(), &full);
    assert_eq!(full.to_string(), "could not write `out/part`: no storage space");
    assert!(full.hint().unwrap().starts_with("free some space"));
}

#[test]
fn a_remote_object_replaced_while_it_is_read_is_an_error() {
    let storage = storage();
    let object = storage.locate("memory://a", "".as_ref()).unwrap();
    storage.put(&object, vec![1; 9 << 20].into()).unwrap();
    let mut reader = storage.reader(&object, 0).unwrap();
    let mut byte = [0];
    reader.read_exact(&mut byte).unwrap();
    storage.put(&object, vec![2; 9 << 20].into()).unwrap();
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
    let error = error.into_inner().unwrap().downcast::<StorageError>().unwrap();
    assert!(matches!(*error, StorageError::Changed { .. }), "{error}");
}

#[test]
fn unfinished_objects_are_forgotten_unless_somebody_may_still_write_them() {
    let (storage, folder) = (storage(), TempDir::new().unwrap());
    let [root, memory] = roots(&storage, &folder);
    storage.put(&root.child("parts/a/1.parquet"), Bytes::from_static(b"whole")).unwrap();
    let beside = |name: &str| folder.path().join("out/parts/a").join(name);
    for name in ["1.parquet#1", "2.parquet#12", "#1", "3.parquet#", "3.parquet#1a"] {
        std::fs::write(beside(name), "").unwrap();
    }
    let earlier = SystemTime::now() - std::time::Duration::from_secs(60);
    storage.forget_unfinished(&root, earlier).unwrap();
    assert!(beside("1.parquet#1").exists() && beside("2.parquet#12").exists());
    let later = SystemTime::now() + std::time::Duration::from_secs(60);
    for place in [&root, &memory, &root.child("none")] {
        storage.forget_unfinished(place, later).unwrap();
    }
    assert!(!beside("1.parquet#1").exists() && !beside("2.parquet#12").exists());
    for name in ["1.parquet", "#1", "3.parquet#", "3.parquet#1a"] {
        assert!(beside(name).exists(), "{name} is not ours");
    }
}
