import { connect } from '../../../../proto/client.ts'
import { criImageContract } from '../../../../proto/load.ts'

// Has containerd pull an image as a kubelet does: `ctr images pull` fetches all layers first, whatever the snapshotter has.

const CONTAINERD = '/run/containerd/containerd.sock'

/** Five minutes: containerd and the agent run on translated instructions. */
const DEADLINE_MS = 300_000

using images = connect(criImageContract(), CONTAINERD)
const [image = ''] = process.argv.slice(2)
await images.calls.PullImage({ image: { image } }, { signal: AbortSignal.timeout(DEADLINE_MS) })
