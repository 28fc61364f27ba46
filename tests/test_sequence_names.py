"""Which sequence a name tells: names as data sets, scanners and clinics give them."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_moe_hgd.sequence_names import KIND, role_of

NAMES = {
    "t1": """
        T1 t1w T1WI BraTS20_Training_001_t1 BraTS-GLI-00002-000-t1n VSD.Brain.XX.O.MR_T1.54512
        UCSD-PTGBM-0002_01_T1pre UPENN-GBM-00001_11_T1_unstripped UCSF-PDGM-0004_T1_bias t1_skull_strip
        PatientID_0003_Timepoint_1_brain_t1n sub-01_T1w sub-01_ses-post_T1w sub-post_T1w sub-01_acq-mprage_run-1_T1w
        MPRAGE t1_mprage_sag_p2_iso t1_fl2d_tra T1_SE t1_se_tra_nativ t1_vor_KM t1_ohne_KM T1_sans_gado
        T1_sans_injection T1_avant_injection 8-AX_T1_pre_gd-14019a sT1W_3D_TFE 3D_FSPGR_BRAVO AX|T1|W/O T1|C-
        T1toT2 T1_in_FLAIR_space T1_to_MNI T1pre_to_T1post postop_T1 post_op_T1 sub_01_T1 Tumor01_T1 t1_bet Petra_T1
    """,
    "t1c": """
        T1c T1ce T1Gd t1gd t1post CT1 ct1_skull_strip UPENN-GBM-00001_11_T1GD UCSD-PTGBM-0002_01_T1post 2_T1GD
        TCGA-02-0003_1997.06.08_t1Gd PatientID_0003_Timepoint_1_brain_t1c BraTS2021_00006_t1ce
        sub-01_ce-gadolinium_T1w sub-01_ses-pre_ce-GADOLINIUM_T1w sub-01_acq-ce_T1w
        t1_mprage_gad T1w_post T1wPost T1_C T1WI+C T1|C+ AX|T1|POST|+C MPRAGE_post Sag|BRAVO|+C axt1post preop_T1_post
        t1_km t1_tra_KM t1_mpr_ns_sag_p2_iso_km T1_nach_KM T1_GADO AX_T1_SE_GADO 3D_T1_inj T1_injecté
        T1_après_injection post_op_T1_gad 3D|AX|T1|Post-contrast|Intra-op|Thin-cut T1_contraste
    """,
    "t2": """
        T2 t2w T2WI UPENN-GBM-00001_11_T2 BraTS-GLI-00002-000-t2W sub-01_T2w sub-01_space-T1w_desc-preproc_T2w
        sub-01_space-FLAIR_T2w t2_tse_tra_512 ax_t2_tse dT2W_TSE Ax_CUBE_T2 7-AX_T2_FR-FSE_RF2_150-55295a
        T2_reg_to_T1 T2_reg_flair T2_coreg_T1 T2_2_FLAIR
    """,
    "flair": """
        FLAIR t2f FLAIR_axial ax_t2_flair T2FLAIR T2|FLAIR|+C BraTS18_X_1_flair sub-01_FLAIR sub-01_space-T1w_FLAIR
        t2_tirm_tra_dark-fluid t2_spc_da-fl_sag_p2_iso t2_space-flair_sag Sag_CUBE_FLAIR T2W_FLAIR flair1
        P1_flair_to_t1 flair2t1 FLAIRtoT1 FLAIR_registered_T1
    """,
    "seg": """
        seg mask label tumor OTMultiClass_mask BraTS-GLI-00002-000-seg UPENN-GBM-00001_11_automated_approx_segm
        UCSF-PDGM-0004_tumor_segmentation UCSD-PTGBM-0002_01_BraTS_tumor_seg PatientID_0003_Timepoint_1_tumorMask
        W39_1998.09.19_Segm BraTS-MEN-RT-0001-1_gtv sub-01_desc-tumor_dseg sub-01_label-tumor_mask lesion_mask
        tumorseg_FeTS brain_tumour_seg t1c_tumor_seg
    """,
    "other": """
        ADC DWI ep2d_diff_3scan_trace SWI T2star sub-01_T2starw AX|T2*|GRE T1map T1_map localizer T1_sub
        9-3D_DCE_T1_MAP-73753a UCSF-PDGM-0004_DTI_eddy_FA UCSD-PTGBM-0002_01_SWAN perf_rCBV tof_fl3d_tra CT
        brainmask brain_mask bet_mask brainmask_flair UCSF-PDGM-0004_brain_segmentation sub-01_desc-brain_mask
        sub-01_label-GM_probseg MS-07-lesions FA_map_to_T1
    """,
    None: """
        scan3 brain IMG_0001 t1_t2_fused T1_FLAIR AX|T1|FLAIR T1_pre_post t11 P1_T12 post_contrast gad xyz_to_T1
        reg_to_T1 t1c_tumor flair_lesions BraTS-GLI-00002-000
    """,
}
CASES = [(name.replace("|", " "), role) for role, names in NAMES.items() for name in names.split()]


@pytest.mark.parametrize(("name", "role"), CASES, ids=[name for name, _ in CASES])
def test_a_name_as_it_is_given_tells_its_sequence(name: str, role: str | None) -> None:
    assert role_of(name) == role


@given(
    case=st.sampled_from([case for case in CASES if not case[0].startswith("sub-")]),
    letters=st.from_regex(r"[A-Za-z]{1,12}", fullmatch=True),
    number=st.one_of(st.just(""), st.integers(0, 99999).map(str)),
    between=st.sampled_from(("_", "-", ".", " ", "__")),
)
def test_a_patient_before_a_name_never_changes_the_answer(
    case: tuple[str, str | None], letters: str, number: str, between: str
) -> None:
    name, role = case
    patient = f"{letters}{number}"
    # Patients who are called like a sequence are recognised by the other names of the folder (`test_layouts`).
    words = re.findall(r"[a-z]+\d*", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", patient).lower())
    assume(not any(part in KIND for word in [*words, patient.lower()] for part in (word, word.rstrip("0123456789"))))
    assume(role_of(patient) is None)
    assert role_of(f"{patient}{between}{name}") == role


@pytest.mark.parametrize(
    "patient",
    ["Meier^Hans", "sub_01", "0815", "20190405", "TCGA-02-0003_1997.06.08", "P1", "1.2.840.113619", "Müller"],
)
@pytest.mark.parametrize(
    ("name", "role"), [("T1", "t1"), ("T1_post", "t1c"), ("t2_tirm_tra", "flair"), ("seg", "seg")]
)
def test_names_of_patients_do_not_count(patient: str, name: str, role: str) -> None:
    assert role_of(f"{patient}_{name}") == role


@given(st.text(max_size=300))
def test_any_text_has_an_answer(text: str) -> None:
    assert role_of(text) in {"t1", "t1c", "t2", "flair", "seg", "other", None}
