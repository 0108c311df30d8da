{
    // `bytes: &[u8]` is any input. Included by the fuzz target and by the test suite.
    if let Ok(pack) = mlx_lm::mlxpack::Pack::from_bytes("fuzz.mlxpack", bytes.to_vec()) {
        let mut end = 0;
        for entry in pack.entries() {
            assert!(entry.offset >= end && entry.offset + entry.length <= bytes.len() as u64);
            end = entry.offset + entry.length;
            let path = std::path::Path::new(&entry.name);
            assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))), "{path:?}");
            let place = &bytes[entry.offset as usize..end as usize];
            if let Ok(read) = pack.read(entry) {
                assert_eq!(read, place);
            }
        }
        assert!(pack.entries().is_empty() || end == bytes.len() as u64);
        // A file is whole if and only if verification does not name it.
        let damages = pack.verify(&mut mlx_lm::Watch::none()).unwrap();
        for entry in pack.entries() {
            if pack.read(entry).is_err() {
                assert!(damages.iter().any(|damage| damage.name == entry.name));
            }
        }
    }
}
