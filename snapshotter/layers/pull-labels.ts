import type { Labels } from '../containerd/labels.ts'
import type { RememberedImage } from '../images-of-node.ts'

/*
 * Labels that containerd's client sets where it is told to (pkg/snapshotters of containerd): for which image, manifest and layer
 * a snapshot is prepared, and which layers are still to come. They are the word of whoever may call the snapshotter, and of the
 * manifest that was pulled; nothing of them is believed that the registry does not say too.
 */
export const REFERENCE_LABEL = 'containerd.io/snapshot/cri.image-ref'
export const MANIFEST_DIGEST_LABEL = 'containerd.io/snapshot/cri.manifest-digest'
export const LAYER_DIGEST_LABEL = 'containerd.io/snapshot/cri.layer-digest'
export const LAYERS_LABEL = 'containerd.io/snapshot/cri.image-layers'

/** The labels with which containerd would ask for this layer of an image that it pulls. */
export function pullLabels(image: RememberedImage, layerChainId: string): Labels {
  const at = image.layers.findIndex((layer) => layer.layerChainId === layerChainId)
  const digests = image.layers.slice(Math.max(0, at)).map(({ digest }) => digest)
  return new Map([
    [REFERENCE_LABEL, image.reference],
    [MANIFEST_DIGEST_LABEL, image.manifestDigest],
    [LAYER_DIGEST_LABEL, digests[0] ?? ''],
    [LAYERS_LABEL, digests.join(',')],
  ])
}
