"""Settings from flags, environment, file and defaults, and every problem at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vllmdeploy.config.settings import KEYS, Loaded, Settings, load, starting
from vllmdeploy.config.sources import BARE_KEYS
from vllmdeploy.config.values import PortRange, Size, fault
from vllmdeploy.errors import SettingsError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(
    text: str = "",
    *,
    nodes: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    bare_names: bool = False,
) -> Loaded:
    Path("config.env").write_text(text, encoding="utf-8")
    if nodes is not None:
        Path("worker_nodes.txt").write_text(nodes, encoding="utf-8")
    return load(
        environ=environ or {},
        overrides=overrides,
        bare_names=bare_names,
        accelerators=("nvidia", "hygon"),
        this_machine="desk",
    )


def refusal(
    text: str = "",
    *,
    nodes: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    bare_names: bool = False,
) -> str:
    with pytest.raises(SettingsError) as error:
        loaded(text, nodes=nodes, environ=environ, overrides=overrides, bare_names=bare_names)
    return str(error.value)


CONTRACT = re.findall(
    r"\w+",
    """
PROJECT_PATH MODEL_PATH DEFAULT_TP_SIZE DEFAULT_BATCH_SIZE QUANTIZATION SHM_SIZE API_PORT
WORKERS MAX_NUM_SEQS MAX_NUM_BATCHED_TOKENS GPU_MEMORY_UTILIZATION MAX_WORKERS
TENSOR_PARALLEL_SIZE MAX_MODEL_LEN CUDA_MPS_ENABLE CUDA_MPS_PIPE_DIRECTORY
CUDA_MPS_LOG_DIRECTORY VLLM_USE_MPS VLLM_DISABLE_CUSTOM_ALL_REDUCE USE_MULTI_VLLM VLLM_PORTS
VLLM_HOST INPUT_JSONL OUTPUT_DIR FONT_PATH CLUSTER_NAME HEAD_HOST HEAD_IP WORKER_NODES_FILE
SSH_USER SSH_PORT SSH_KEY SSH_KNOWN_HOSTS SSH_PASSWORD_FILE SUDO IMAGE RUNTIME EXECUTOR
ACCELERATOR NETWORK_INTERFACE RAY_PORT RAY_DASHBOARD_PORT RAY_CLIENT_PORT RAY_NODE_MANAGER_PORT
RAY_OBJECT_MANAGER_PORT RAY_RUNTIME_ENV_AGENT_PORT RAY_DASHBOARD_AGENT_GRPC_PORT
RAY_DASHBOARD_AGENT_PORT RAY_METRICS_PORT RAY_AUTOSCALER_METRICS_PORT
RAY_DASHBOARD_METRICS_PORT RAY_WORKER_PORTS RAY_AUTH ENGINE_PORTS API_HOST
API_AUTH API_ALLOW API_KEYS_FILE ADMIN_KEY_FILE GATEWAY_HOSTS DEFAULT_MODEL ROUTING_STRATEGY
SCHEDULING_POLICY HF_ENDPOINT HF_TOKEN_FILE EXTRA_DOCKER_ARGS EXTRA_VLLM_ARGS EXTRA_ENV
""",
)


def test_every_key_of_the_contract_is_known() -> None:
    assert set(CONTRACT) - set(KEYS) == set()
    assert set(KEYS) - set(CONTRACT) == {
        "API_FILES_SIZE",
        "DRAIN_S",
        "MODELSCOPE_ENDPOINT",
        "MODELSCOPE_TOKEN_FILE",
        "RAY_ADDRESS",
        "RAY_CPUS",
        "USE_CDI",
        "VLLM_PYTHON",
    }


def test_the_seeds_keys_come_first() -> None:
    assert list(KEYS[:25]) == CONTRACT[:25]


def test_nothing_set_means_the_defaults() -> None:
    found = loaded(nodes="10.0.0.2\n")
    assert found.settings == Settings(worker_nodes_file=Path("worker_nodes.txt"))
    assert found.settings.api_port == 8000
    assert found.settings.default_batch_size == 32
    assert found.settings.shm_size == Size(16 << 30)
    assert found.settings.ray_worker_ports == PortRange(20000, 20999)
    assert found.settings.max_num_seqs is None
    assert [host.name for host in found.fleet.hosts] == ["desk", "10.0.0.2"]
    assert (found.bare, found.notes) == ((), ())


FLAG, PREFIXED, BARE, FILE = 4, 3, 2, 1


@pytest.mark.parametrize("flag", [None, FLAG])
@pytest.mark.parametrize("prefixed", [None, PREFIXED])
@pytest.mark.parametrize("bare", [None, BARE])
@pytest.mark.parametrize("file", [None, FILE])
@pytest.mark.parametrize("bare_names", [False, True])
def test_the_first_source_that_has_a_key_wins(
    flag: int | None, prefixed: int | None, bare: int | None, file: int | None, bare_names: bool
) -> None:
    environ = {"VLLMDEPLOY_WORKERS": prefixed, "WORKERS": bare}
    found = loaded(
        f"WORKERS={file}" if file else "",
        environ={name: str(value) for name, value in environ.items() if value},
        overrides={"workers": flag},
        bare_names=bare_names,
    )
    from_bare = bare if bare_names else None
    assert found.settings.workers == (flag or prefixed or from_bare or file)
    assert found.bare == (("WORKERS",) if from_bare and not (flag or prefixed) else ())
    where = {
        FLAG: "command line",
        PREFIXED: "environment",
        BARE: "environment",
        FILE: "config.env:1",
        None: "default",
    }
    assert found.source("WORKERS") == where[found.settings.workers]


def test_every_bare_name_is_read_and_no_other() -> None:
    assert set(BARE_KEYS) <= set(KEYS)
    environ = {"API_PORT": "9", "MODEL_PATH": "..", "VLLM_HOST": "gpu-9", "FONT_PATH": "/f.ttf"}
    found = loaded(environ=environ, bare_names=True)
    assert (found.settings.api_port, found.settings.vllm_host) == (8000, "gpu-9")
    assert found.bare == ("VLLM_HOST", "FONT_PATH")


def test_an_empty_value_is_the_same_as_none() -> None:
    environ = {"VLLMDEPLOY_CLUSTER_NAME": ""}
    found = loaded("CLUSTER_NAME=blue\nSSH_USER=\n", environ=environ, overrides={"image": ""})
    assert (found.settings.cluster_name, found.settings.ssh_user) == ("blue", None)


def test_what_steers_the_test_suite_is_no_setting() -> None:
    assert loaded(environ={"VLLMDEPLOY_TEST_KEEP": "1", "PATH": "x"}).settings.api_port == 8000


def test_values_are_typed() -> None:
    found = loaded(
        "EXTRA_DOCKER_ARGS=--cap-add 'IPC_LOCK'\n"
        "EXTRA_ENV=\"NCCL_DEBUG=INFO NCCL_IB_HCA='mlx5_0,mlx5_1'\"\n"
        "VLLM_PORTS=8001-8003\nCUDA_MPS_ENABLE=1\nSHM_SIZE=10.24g\nAPI_ALLOW=10.0.0.0/8\n"
    ).settings
    assert found.extra_docker_args == ("--cap-add", "IPC_LOCK")
    assert found.extra_env == {"NCCL_DEBUG": "INFO", "NCCL_IB_HCA": "mlx5_0,mlx5_1"}
    assert found.vllm_ports == (8001, 8002, 8003)
    assert found.cuda_mps_enable is True
    assert found.api_allow == ("10.0.0.0/8",)


def test_a_group_has_its_own_image_or_the_common_one() -> None:
    found = loaded("IMAGE=a:1\nIMAGE_HYGON_A=b:2\n", nodes="h group=hygon-a head=yes\n").settings
    assert [found.image_for("hygon-a"), found.image_for("default")] == ["b:2", "a:1"]
    assert Settings().image_for("default") is None


def test_files_named_in_config_env_are_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    folder.mkdir()
    text = "SSH_KEY=key\nHF_TOKEN_FILE=/abs\nINPUT_JSONL=in.jsonl\nWORKER_NODES_FILE=hosts\n"
    (folder / "my.env").write_text(text, encoding="utf-8")
    (folder / "hosts").write_text("10.0.0.2\n", encoding="utf-8")
    found = load(
        config_path=folder / "my.env",
        environ={"VLLMDEPLOY_SSH_PASSWORD_FILE": "secret"},
        this_machine="desk",
    )
    assert found.settings.ssh_key == folder / "key"
    assert found.settings.hf_token_file == Path("/abs")
    assert found.settings.ssh_password_file == Path("secret")
    assert found.settings.input_jsonl == Path("in.jsonl")
    assert [host.source for host in found.nodes] == [f"{folder}/hosts:1"]


def test_missing_files_of_the_usual_names_are_said() -> None:
    found = load(environ={}, this_machine="desk")
    assert found.notes == (
        "config.env is not there: defaults are used",
        "worker_nodes.txt is not there: the fleet is the head alone",
    )
    assert [host.name for host in found.fleet.hosts] == ["desk"]


def test_missing_files_that_were_named_are_refused() -> None:
    with pytest.raises(SettingsError) as error:
        load(config_path=Path("a.env"), nodes_path=Path("b.txt"), environ={})
    assert str(error.value) == (
        "2 problems in the settings:\n"
        "  a.env: no such file; `vllmdeploy init` writes one\n"
        "  b.txt: no such file; `vllmdeploy init` writes one"
    )
    assert refusal("\nWORKER_NODES_FILE=none.txt") == (
        "1 problem in the settings:\n"
        "  config.env:2: WORKER_NODES_FILE: none.txt: no such file; `vllmdeploy init` writes one"
    )


def test_a_folder_or_a_huge_file_is_no_settings_file() -> None:
    Path("dir").mkdir()
    Path("huge").write_bytes(b"#" * 2_000_000)
    with pytest.raises(SettingsError) as error:
        load(config_path=Path("dir"), nodes_path=Path("huge"), environ={})
    assert error.value.problems == (
        "dir: Is a directory",
        "huge: larger than 1,048,576 bytes: this is not a settings file",
    )


def test_all_problems_of_all_sources_come_at_once_in_the_order_of_lines() -> None:
    text = (
        "CLUSTER_NAME=Blue\nAPI_PROT=80\nimage=x\nHF_TOKEN=hf_x\nRAY_CPUS=many\nSUDO='a\n"
        "IMAGE_HYGN=x:1\nIMAGE_DEFAULT=-x\nACCELERATOR=nvida\nZZZ=1\nMAX_NUM_SEQS=64\n"
        "MAX_NUM_BATCHED_TOKENS=32\nAPI_AUTH=none\n"
    )
    nodes = "10.0.0.2 gruop=x\n10.0.0.3 accelerator=hygn\n10.0.0.4 group=hygon\n"
    environ = {"VLLMDEPLOY_RUNTIME": "dokcer", "VLLMDEPLOY_NOPE": "1", "WORKERS": "0"}
    said = refusal(
        text, nodes=nodes, environ=environ, overrides={"api_port": "http"}, bare_names=True
    )
    assert said == (
        "19 problems in the settings:\n"
        "  environment: VLLMDEPLOY_NOPE: unknown key; config.env.example lists all keys\n"
        "  command line: API_PORT: 'http' is not a port: a whole number from 1 to 65535\n"
        "  environment: WORKERS: '0' is not a number: a whole number from 1 to 1000000\n"
        "  environment: VLLMDEPLOY_RUNTIME: 'dokcer' is not one of docker, process, systemd; "
        "did you mean docker?\n"
        "  config.env:1: CLUSTER_NAME: 'Blue' is not a cluster name: up to 63 of a-z 0-9 _ . -, "
        "a letter or digit first\n"
        "  config.env:2: API_PROT: unknown key; did you mean API_PORT?\n"
        "  config.env:3: image: unknown key; did you mean IMAGE?\n"
        "  config.env:4: HF_TOKEN: unknown key; did you mean HF_TOKEN_FILE?\n"
        "  config.env:5: RAY_CPUS: 'many' is not a number: a whole number from 1 to 1000000\n"
        "  config.env:6: SUDO: the opening ' has no closing one in this line\n"
        "  config.env:7: IMAGE_HYGN: no group of this name among the hosts; "
        "did you mean IMAGE_HYGON?\n"
        "  config.env:8: IMAGE_DEFAULT: '-x' is not an image such as NAME:TAG\n"
        "  config.env:9: ACCELERATOR: 'nvida' is not one of nvidia, hygon; did you mean nvidia?\n"
        "  config.env:10: ZZZ: unknown key; config.env.example lists all keys\n"
        "  config.env:12: MAX_NUM_BATCHED_TOKENS: 32 is less than MAX_NUM_SEQS, 64\n"
        "  config.env:13: API_AUTH: none needs API_ALLOW, the networks that may call without a "
        "key\n"
        "  worker_nodes.txt:1: unknown key 'gruop'; did you mean group?\n"
        "  worker_nodes.txt:2: accelerator: 'hygn' is not one of nvidia, hygon; "
        "did you mean hygon?\n"
        "  worker_nodes.txt:3: group=hygon: no host of this group has head=yes"
    )


def test_a_secret_in_the_wrong_place_is_never_repeated() -> None:
    said = refusal(
        "HF_TOKEN=hf_secret\nEXTRA_ENV=HF_TOKEN=hf_secret\nHF_ENDPOINT=http://u:hf_secret@x"
    )
    assert "hf_secret" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("API_PORT=8265", "config.env:1: API_PORT: 8265 is taken by RAY_DASHBOARD_PORT"),
        ("RAY_PORT=8150", "config.env:1: RAY_PORT: 8150 is taken by ENGINE_PORTS (8100-8199)"),
        (
            "ENGINE_PORTS=7999-8100",
            "config.env:1: ENGINE_PORTS: 8000 is taken by API_PORT",
        ),
        (
            "RAY_WORKER_PORTS=8150-8250",
            "config.env:1: RAY_WORKER_PORTS: 8150-8199 is taken by ENGINE_PORTS (8100-8199)",
        ),
        ("VLLM_PORTS=8000,8001", "config.env:1: VLLM_PORTS: 8000 is taken by API_PORT"),
    ],
)
def test_every_port_has_one_owner(text: str, said: str) -> None:
    first = refusal(text).splitlines()[1].strip()
    assert first == said


def test_vllm_ports_may_lie_inside_engine_ports() -> None:
    assert loaded("VLLM_PORTS=8101,8102").settings.vllm_ports == (8101, 8102)


def test_a_conflict_with_a_refused_value_is_not_invented() -> None:
    assert refusal("RAY_PORT=x\nAPI_PORT=6379").splitlines()[1:] == [
        "  config.env:1: RAY_PORT: 'x' is not a port that needs no special rights: "
        "a whole number from 1024 to 65535"
    ]


def test_the_image_of_a_group_is_not_checked_where_there_is_no_list_of_hosts() -> None:
    assert loaded("IMAGE_HYGON=a:1").settings.image_for("hygon") == "a:1"


def test_values_given_in_code_take_the_same_checks() -> None:
    made = Settings(
        image="a:1",
        vllm_ports=(8001, 8002),
        extra_env={"A": "1,2"},
        ray_worker_ports=PortRange(30000, 30100),
        cuda_mps_enable=True,
        gpu_memory_utilization=0.9,
    )
    assert Settings.model_validate(dict(made)) == made
    with pytest.raises(ValidationError, match="control or invisible character"):
        Settings(model_path="/a\nb")


def test_what_init_writes_is_checked_the_same_way() -> None:
    with pytest.raises(SettingsError) as error:
        starting({"CLUSTER_NAME": "?", "HEAD_HOST": "a"}, nodes_text="a\n", nodes_name="n")
    assert error.value.problems == (
        "command line: CLUSTER_NAME: '?' is not a cluster name: up to 63 of a-z 0-9 _ . -, "
        "a letter or digit first",
        "n:1: a is the head (HEAD_HOST): remove the line, or add head=yes to it",
    )


@settings(
    max_examples=2500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from([*KEYS, "IMAGE_X", "API_PROT"]),
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="01 ='\"\\#$`;|&<>(){}/,:[]@-.%!~*?a", max_size=40),
        st.text(alphabet="0123456789-,.", max_size=12),
    ),
)
def test_any_value_of_any_key_is_taken_or_refused_by_name(key: str, value: str) -> None:
    Path("config.env").write_text(f"{key}={value}", encoding="utf-8")
    for environ, where in (
        ({}, r"config\.env:\d+: "),
        ({f"VLLMDEPLOY_{key}": value}, rf"environment: VLLMDEPLOY_{key}: "),
    ):
        try:
            load(environ=environ, this_machine="desk")
        except SettingsError as error:
            for problem in error.problems:
                assert re.match(where, problem)
                assert "Value error" not in problem
                assert fault(problem) is None
        Path("config.env").write_text("", encoding="utf-8")
