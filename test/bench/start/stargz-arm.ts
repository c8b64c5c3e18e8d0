import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { goProgram } from '../../support/go-programs.ts'
import { buildOnce } from '../../support/images/build-cache.ts'
import {
  type ImageProcess,
  type LayerBlob,
  type OciLayout,
  openOciLayout,
  writeOciLayout,
} from '../../support/images/oci-layout.ts'
import { Scratch } from '../../support/scratch.ts'
import {
  convertByStargz,
  filesRead,
  type StargzOptions,
  StargzSnapshotter,
} from '../../support/stargz-snapshotter.ts'
import { type Arm, type ArmNode, type ImageToStart, registryHosts } from './arm.ts'
import { startNode } from './node.ts'
import type { Site } from './site.ts'
import { startUntilReady } from './timed-start.ts'

/** stargz-snapshotter as it comes, with an image that was converted and no more. */
export const estargz: Arm = {
  name: 'estargz',
  title: 'stargz-snapshotter',
  isWhole: false,
  prepare,
  publish: async (image, site) => (await publishPlain(image, site)).reference,
  openNode: (scratch, site) => openNode(scratch, site),
}

/** The same with an image in which each layer begins with the files that a start was seen to read, which it fetches at once. */
export const estargzOptimised: Arm = {
  name: 'estargz-optimised',
  title: 'stargz-snapshotter, optimised image',
  isWhole: false,
  prepare,
  publish: async (image, site) => {
    const { workload, layout } = image
    const files = await recordedFiles(image, site)
    const optimised = await convert(layout, (index) => files[index] ?? [])
    return await site.registry.push(optimised, `${workload.name}-estargz-optimised`)
  },
  openNode: (scratch, site) => openNode(scratch, site),
}

/** Longer than a start on a machine at a load of 100, in ms. */
const RECORD_DEADLINE_MS = 600_000

async function prepare(): Promise<void> {
  await goProgram('stargz-snapshotter')
}

async function openNode(
  scratch: Scratch,
  { registry }: Site,
  options: StargzOptions = {},
): Promise<ArmNode & { readonly snapshotter: StargzSnapshotter }> {
  const plainHosts = [registry.host]
  const snapshotter = await StargzSnapshotter.start(scratch, {
    isEager: true,
    plainHosts,
    ...options,
  })
  return {
    snapshotter,
    hosts: registryHosts(registry.host),
    [Symbol.asyncDispose]: () => snapshotter[Symbol.asyncDispose](),
  }
}

async function publishPlain(
  { workload, layout }: ImageToStart,
  { registry }: Site,
): Promise<{ converted: OciLayout; reference: string }> {
  const converted = await convert(layout, () => [])
  return { converted, reference: await registry.push(converted, `${workload.name}-estargz`) }
}

/** The files of each layer, lowest first, that a start of the plain image reads; from a run now or earlier. */
async function recordedFiles(image: ImageToStart, site: Site): Promise<readonly string[][]> {
  const { workload, layout } = image
  const { command, ready } = workload
  const recipe = [layout.manifestDigest, command, ready]
  const dir = await buildOnce(`estargz-files-${workload.name}`, recipe, async (dir) => {
    const { converted, reference } = await publishPlain(image, site)
    await using scratch = Scratch.open('bench-record')
    await using armNode = await openNode(scratch, site, { isEager: false, logsFiles: true })
    await using node = await startNode(scratch, armNode)
    const pod = await node.cri.runPodSandbox()
    const start = { pod, image: reference, command, ready }
    await startUntilReady(node.cri, start, AbortSignal.timeout(RECORD_DEADLINE_MS))
    await node.cri.removePodSandbox(pod)
    const files = filesRead(armNode.snapshotter)
    const ofLayers = converted.layers.map(({ digest }) => files.get(digest) ?? [])
    writeFileSync(join(dir, 'files.json'), JSON.stringify(ofLayers))
  })
  return JSON.parse(readFileSync(join(dir, 'files.json'), 'utf8')) as string[][]
}

/** The image with every layer as eStargz, the files that `first` names in front; layers that were converted before are found again. */
async function convert(
  layout: OciLayout,
  first: (layer: number) => readonly string[],
): Promise<OciLayout> {
  const layers: LayerBlob[] = []
  for (const [index, { path, digest }] of layout.layers.entries()) {
    const dir = await buildOnce('estargz-layer', [digest, first(index)], async (dir) => {
      writeFileSync(
        join(dir, 'layer.json'),
        JSON.stringify(await convertByStargz(path, dir, first(index))),
      )
    })
    const layer = JSON.parse(readFileSync(join(dir, 'layer.json'), 'utf8')) as LayerBlob
    // It was written in a folder that has been renamed since.
    layers.push({ ...layer, path: join(dir, 'layer.estargz') })
  }
  const dir = await buildOnce('estargz-image', layers, async (dir) => {
    writeOciLayout(dir, { layers, process: processOf(layout) })
  })
  return openOciLayout(dir)
}

/** What the image runs as. */
function processOf({ dir, manifestDigest }: OciLayout): ImageProcess {
  const blob = (digest: string): string =>
    readFileSync(join(dir, 'blobs', digest.replace(':', '/')), 'utf8')
  const { config } = JSON.parse(blob(manifestDigest)) as { config: { digest: string } }
  return (JSON.parse(blob(config.digest)) as { config: ImageProcess }).config
}
