import { buildDemoImage } from '../support/images/demo-image.ts'

// A program of its own, so that a build that is interrupted ends with all that it started. It says what it does on
// standard error, and on standard output, as JSON, where the image is.

try {
  console.log(JSON.stringify(await buildDemoImage((line) => console.error(line))))
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
}
