import type { Command } from './command.ts'
import { cacheCheck } from './commands/cache-check.ts'
import { cacheGc } from './commands/cache-gc.ts'
import { cacheLs } from './commands/cache-ls.ts'
import { cacheRm } from './commands/cache-rm.ts'
import { deletePod } from './commands/delete-pod.ts'
import { deploy, update } from './commands/deploy.ts'
import { doctor } from './commands/doctor.ts'
import { exportCommand } from './commands/export-image.ts'
import { importCommand } from './commands/import-car.ts'
import { indexLayers } from './commands/index-layers.ts'
import { init } from './commands/init.ts'
import { inspect } from './commands/inspect.ts'
import { optimize } from './commands/optimize.ts'
import { logs } from './commands/pod-logs.ts'
import { providers } from './commands/providers.ts'
import { pull } from './commands/pull.ts'
import { push } from './commands/push.ts'
import { repositoryGc } from './commands/repository-gc.ts'
import { repositoryLs } from './commands/repository-ls.ts'
import { repositoryRm } from './commands/repository-rm.ts'
import { runtimeSpec } from './commands/runtime-spec.ts'
import { serve } from './commands/serve.ts'
import { sign } from './commands/sign.ts'
import { status } from './commands/status.ts'
import { verify } from './commands/verify.ts'
import { waited } from './commands/waited.ts'

/** Every command, in the order of the help: first a publisher's, then a node's. */
export const COMMANDS: readonly Command[] = [
  push,
  serve,
  inspect,
  indexLayers,
  optimize,
  sign,
  verify,
  importCommand,
  exportCommand,
  repositoryLs,
  repositoryRm,
  repositoryGc,
  init,
  deploy,
  update,
  logs,
  deletePod,
  providers,
  pull,
  doctor,
  status,
  waited,
  cacheLs,
  cacheCheck,
  cacheGc,
  cacheRm,
  runtimeSpec,
]

/** First words that several commands share, with their line in the help. */
export const COMMAND_GROUPS: Readonly<Record<string, string>> = {
  repository: 'List, remove and clean up the images that you published',
  cache: 'List and free the layers that this node keeps',
}
