import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

// Makes messages/ of the .proto files that Connect speaks: `npm run proto`. Another directory may be given, to compare.
const root = join(import.meta.dirname, '..')
const outDir = process.argv[2] ?? 'proto/messages'

execFileSync(
  join(root, 'node_modules/.bin/buf'),
  [
    'generate',
    'proto',
    `--template=${JSON.stringify({
      version: 'v2',
      // Not TypeScript: its enums are code, which Node does not strip.
      plugins: [
        { local: 'protoc-gen-es', out: outDir, opt: ['target=js+dts', 'import_extension=js'] },
      ],
    })}`,
    '--path=proto/ipdr/deploy.proto',
    '--path=proto/apocryph',
  ],
  {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, PATH: `${join(root, 'node_modules/.bin')}:${process.env['PATH']}` },
  },
)
