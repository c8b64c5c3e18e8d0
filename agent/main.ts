import { setMaxListeners } from 'node:events'
import yargs from 'yargs'
import { hideBin } from 'yargs/helpers'
import { CodedError } from '../snapshotter/errors.ts'
import { type Config, parseConfig, readConfig } from './config.ts'
import { serviceDescriptorStore } from './descriptor-store.ts'
import { createLogger, type Logger } from './logger.ts'
import { serviceNotifier } from './service-notify.ts'
import { Succession } from './succession.ts'
import { supervise } from './supervisor.ts'

/** Exit codes of sysexits(3): a wrong command line or configuration, and missing permission. */
const EXIT = { ok: 0, failure: 1, config: 78, noPermission: 77 } as const

/** Whether this is a worker that its supervisor talks to. Known only at the start: the supervisor may be gone later. */
const isSupervised = process.connected

/** The process's edge: the only place that knows argv, environment, signals and exit codes. */
async function main(): Promise<number> {
  const stop = new AbortController()
  // Every call and every wait of the process listens to it.
  setMaxListeners(0, stop.signal)
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => stop.abort(new CodedError('CANCELLED', `stopped by ${signal}`)))
  }
  if (isSupervised) {
    // Killed. Whoever is started in its place needs what we hold: sockets, ports and databases.
    process.on('disconnect', () =>
      stop.abort(new CodedError('CANCELLED', 'the supervisor is gone')),
    )
  }
  const command = await yargs(hideBin(process.argv))
    .scriptName('ipdr-agent')
    .usage('$0 [options]\n\nRuns containers straight from IPFS: the agent of one node.')
    .command('$0', 'run the agent: a supervisor and its workers')
    .command(
      'upgrade',
      'have the running agent make room for this version, or read its configuration anew; no pod notices',
    )
    .command(
      'untaint',
      'take the taint ipdr.dev/not-ready off a Kubernetes node once its agent is ready; runs beside it',
      (words) =>
        words
          .option('node', { type: 'string', requiresArg: true, demandOption: true })
          .option('kubeconfig', { type: 'string', requiresArg: true }),
    )
    .command(
      'host-setup',
      "write what containerd needs into a node's /etc/containerd; changes nothing that is not ours",
      (words) =>
        words
          .option('containerd-dir', { type: 'string', requiresArg: true })
          .option('profile', {
            choices: ['runtime-class', 'whole-node'] as const,
            demandOption: true,
          })
          .option('restart-containerd', { type: 'boolean' }),
    )
    .command(
      'control-worker',
      'run the deploy endpoint alone, without a data path on this node; needs no root',
    )
    .command('data-worker', false)
    .option('config', {
      type: 'string',
      describe: 'JSON file; see docs/configuration.md for every field',
      requiresArg: true,
    })
    .option('check-config', { type: 'boolean', describe: 'check the configuration and exit' })
    .option('fuse-fd', { type: 'number', hidden: true })
    .example('$0 --config /etc/ipdr-agent/config.json', 'run with a configuration file')
    .example('$0 --config new.json --check-config', 'see whether a new file would be accepted')
    .strict()
    .parseAsync()

  let config: Config
  try {
    config = command.config === undefined ? parseConfig({}) : readConfig(command.config)
  } catch (error) {
    process.stderr.write(`ipdr-agent: ${sentenceOf(error)}\n`)
    return EXIT.config
  }
  if (command['check-config'] === true) {
    process.stdout.write('configuration is fine\n')
    return EXIT.ok
  }
  // Need no right of root, but for a token.
  if (command._[0] === 'untaint') return await runUntaint(config, command, stop.signal)
  if (command._[0] === 'control-worker') return await runControl(config, stop.signal)
  if (process.getuid?.() !== 0) {
    process.stderr.write(
      'ipdr-agent: mounting needs root: run it with sudo, as a systemd unit, or as a privileged DaemonSet\n',
    )
    return EXIT.noPermission
  }
  if (command._[0] === 'upgrade') return await runUpgrade(config, stop.signal)
  if (command._[0] === 'host-setup') return await runHostSetup(config, command)
  const isWorker = command._[0] === 'data-worker'
  const log = createLogger(config.log, isWorker ? 'data-worker' : 'supervisor')
  try {
    if (isWorker) {
      // Only where it runs: it is most of the program, and of the memory of those that do not.
      const { runDataWorker } = await import('./data-worker.ts')
      await runDataWorker(config, { fuseFd: command['fuse-fd'] }, stop.signal, log)
    } else {
      await runSupervisor(config, command.config, stop.signal, log)
    }
    return EXIT.ok
  } catch (error) {
    logFatal(log, error)
    return EXIT.failure
  }
}

/** Supervises until it is stopped, or becomes another version by SIGHUP. */
async function runSupervisor(
  config: Config,
  configPath: string | undefined,
  stop: AbortSignal,
  log: Logger,
): Promise<void> {
  // Before anything is started, and before an environment is passed on to the next version.
  const store = serviceDescriptorStore(process.env, { pid: process.pid, log })
  const notifier = serviceNotifier(process.env['NOTIFY_SOCKET'], log)
  const succession = new Succession(process.env, hideBin(process.argv))
  const handOver = new AbortController()
  let isChecking = false
  process.on('SIGHUP', () => {
    // From a terminal that closes it means the end, as of any program.
    if (process.stderr.isTTY) {
      process.kill(process.pid, 'SIGTERM')
      return
    }
    if (isChecking) return
    isChecking = true
    succession
      .check()
      .then(
        () => handOver.abort(),
        (error: unknown) => log.error({}, `this version goes on: ${sentenceOf(error)}`),
      )
      .finally(() => {
        isChecking = false
      })
  })
  const { previous } = succession
  const end = await supervise(config, configPath, stop, {
    log,
    notifier,
    store,
    handOver: handOver.signal,
    isTrial: previous !== undefined,
  })
  if (end === 'handed over') {
    log.info({ program: succession.next }, 'making room for the next version')
    succession.handOver()
  }
  if (end === 'failed trial' && previous !== undefined) {
    log.error(
      { program: previous },
      'the worker of this version does not come up: the one before comes back',
    )
    succession.revert(previous)
  }
}

async function runControl(config: Config, stop: AbortSignal): Promise<number> {
  const log = createLogger(config.log, 'control-worker')
  try {
    const { runControlWorker } = await import('./control-worker.ts')
    await runControlWorker(config, stop, log)
    return EXIT.ok
  } catch (error) {
    logFatal(log, error)
    return EXIT.failure
  }
}

async function runUntaint(
  config: Config,
  words: { readonly [name: string]: unknown },
  stop: AbortSignal,
): Promise<number> {
  const { untaint } = await import('./kubernetes/untaint.ts')
  const log = createLogger(config.log, 'untaint')
  const node = wordOf(words['node']) ?? ''
  try {
    await untaint(config, { node, kubeconfig: wordOf(words['kubeconfig']) }, stop, log)
    return EXIT.ok
  } catch (error) {
    logFatal(log, error)
    return EXIT.failure
  }
}

async function runHostSetup(
  config: Config,
  words: { readonly [name: string]: unknown },
): Promise<number> {
  const { isContainerdOlder, restartContainerd, writeHostFiles } = await import(
    './kubernetes/host-setup.ts'
  )
  const log = createLogger(config.log, 'host-setup')
  try {
    const { changed, changedMs } = writeHostFiles(config, {
      containerdDir: wordOf(words['containerd-dir']) ?? '/etc/containerd',
      profile: words['profile'] === 'whole-node' ? 'whole-node' : 'runtime-class',
    })
    const isAsked = words['restart-containerd'] === true
    if (isAsked && isContainerdOlder(changedMs)) {
      log.info({ changed }, 'restarting containerd')
      restartContainerd()
    } else if (changed.length === 0 || isAsked) log.info({}, 'containerd has what it needs')
    else log.warn({ changed }, 'restart containerd on this node: it has not read this yet')
    return EXIT.ok
  } catch (error) {
    logFatal(log, error)
    return EXIT.failure
  }
}

async function runUpgrade(config: Config, signal: AbortSignal): Promise<number> {
  const { upgrade } = await import('./upgrade.ts')
  try {
    process.stdout.write(`${await upgrade(config, signal)}\n`)
    return EXIT.ok
  } catch (error) {
    process.stderr.write(`ipdr-agent: ${sentenceOf(error)}\n`)
    return EXIT.failure
  }
}

function wordOf(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

function logFatal(log: Logger, error: unknown): void {
  log.fatal({ err: error }, `cannot go on: ${sentenceOf(error)}`)
}

function sentenceOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

const exitCode = await main()
// A worker thread blocked in read(2) on /dev/fuse makes process.exit hang for ever; only SIGKILL ends it. All that is
// worth keeping was flushed and closed by the composition root before.
if (isSupervised) process.kill(process.pid, 'SIGKILL')
process.exitCode = exitCode
