//! What the arguments of each call are: one letter each, see `decode::argument`.

/// Arguments of a call that isn't in the table.
pub const UNKNOWN: &[u8] = b"xxxxxx";

/// Number and arguments, in order of the numbers.
#[rustfmt::skip]
static SIGNATURES: &[(u16, &str)] = &[
    (0, "fRu"), (1, "fBu"), (2, "som"), (3, "f"), (4, "sb"), (5, "fb"), (6, "sb"), (7, "pud"), (8, "flq"), (9, "auPMfx"),
    (10, "auP"), (11, "au"), (12, "a"), (13, "gACu"), (14, "hnNu"), (15, ""), (16, "fOx"), (17, "fRul"), (18, "fBul"),
    (19, "fvu"), (20, "fVu"), (21, "sd"), (22, "i"), (23, "dpppp"), (24, ""), (25, "auuxa"), (26, "aux"), (27, "aup"),
    (28, "auD"), (32, "f"), (33, "ff"), (34, ""), (35, "tT"), (36, "dp"), (37, "u"), (38, "dpp"), (39, ""), (40, "ffpu"),
    (56, "capppp"), (57, ""), (58, ""), (59, "sye"), (60, "d"), (61, "dwWp"), (62, "dg"), (63, "U"), (72, "fKx"),
    (73, "fd"), (74, "f"), (75, "f"), (76, "sl"), (77, "fl"), (78, "fpu"), (79, "Ru"), (80, "s"), (81, "f"), (82, "ss"),
    (83, "sm"), (84, "s"), (85, "sm"), (86, "ss"), (87, "s"), (88, "ss"), (89, "sRu"), (90, "sm"), (91, "fm"),
    (92, "sdd"), (95, "m"), (96, "pp"), (97, "Lp"), (98, "dp"), (99, "p"), (100, "p"), (102, ""), (104, ""), (105, "d"),
    (106, "d"), (107, ""), (108, ""), (109, "dd"), (110, ""), (111, ""), (112, ""), (115, "dp"), (121, "d"), (124, "d"),
    (127, "Nu"), (128, "nptu"), (130, "nu"), (131, "pp"), (137, "sp"), (138, "fp"), (157, "dxxxx"), (158, "Xa"),
    (160, "Lp"), (161, "s"), (186, ""), (200, "dg"), (201, "p"), (202, "pzupxx"), (203, "dup"), (204, "dup"),
    (213, "d"), (217, "fpu"), (218, "p"), (219, ""), (222, "kpp"), (223, "dxpp"), (228, "kT"), (229, "kT"), (230, "kxtT"),
    (231, "d"), (232, "fpdd"), (233, "fEfp"), (234, "ddg"), (247, "ddpWp"), (257, "Fsom"), (258, "Fsm"), (262, "Fsbx"),
    (263, "Fsx"), (264, "FsFs"), (265, "FsFsx"), (266, "sFs"), (267, "FsRu"), (268, "Fsm"), (269, "Fsd"), (270, "dppptp"),
    (271, "putnu"), (272, "x"), (273, "pu"), (281, "fpddnu"), (282, "fnu"), (283, "kx"), (284, "ux"), (285, "fxll"), (286, "fxpp"), (289, "fnux"), (290, "ux"),
    (291, "x"), (292, "ffo"), (293, "io"), (295, "fvul"), (296, "fVul"), (302, "dLpp"), (309, "pp"), (318, "pux"),
    (319, "sx"), (322, "Fsyex"), (324, "dx"), (332, "Fsxxp"), (334, "puxx"), (424, "fgpx"),
    (434, "dx"), (435, "pu"), (436, "ffx"), (439, "Fsdx"), (449, "pudtd"), (454, "pxux"), (455, "puxxtd"), (456, "pxuu"),
];

/// The letters of a call.
pub fn signature(nr: u64) -> &'static [u8] {
    let found = SIGNATURES.binary_search_by_key(&nr, |(n, _)| u64::from(*n));
    found.map_or(UNKNOWN, |i| SIGNATURES[i].1.as_bytes())
}

/// How many letters that were at the beginning.
pub fn signature_len(nr: u64) -> usize {
    signature(nr).len()
}

/// Whether a call's result is an address: mmap, brk, mremap.
pub fn gives_address(nr: u64) -> bool {
    matches!(nr, 9 | 12 | 25)
}
