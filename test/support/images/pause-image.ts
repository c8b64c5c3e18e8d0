import { copyFileSync, mkdirSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { busyboxPath } from '../debian-programs.ts'
import { runCommand } from '../run-command.ts'
import { buildOnce } from './build-cache.ts'
import { packLayer, writeOciLayout } from './oci-layout.ts'

/** The image that holds a pod's namespaces open: busybox, which sleeps. As a tar for `ctr images import`. */
export async function buildPauseArchive(): Promise<string> {
  const dir = await buildOnce('image-pause', ['2', busyboxPath], async (dir) => {
    const [tree, layout] = [join(dir, 'tree'), join(dir, 'layout')]
    mkdirSync(tree)
    copyFileSync(busyboxPath, join(tree, 'busybox'))
    const tar = join(dir, 'layer.tar')
    await runCommand('tar', ['--create', `--file=${tar}`, '--mtime=@0', '-C', tree, '.'])
    const layers = [await packLayer(tar, 'gzip', dir)]
    writeOciLayout(layout, {
      layers,
      process: { Entrypoint: ['/busybox', 'sleep', 'infinity'] },
      tag: '1',
    })
    await runCommand('tar', ['--create', `--file=${join(dir, 'pause.tar')}`, '-C', layout, '.'])
    for (const path of [tree, layout, tar]) await rm(path, { recursive: true })
  })
  return join(dir, 'pause.tar')
}
