import { testContentStore } from '../every-containerd/content-store.ts'

testContentStore(['1.6', '1.7', '2'])
